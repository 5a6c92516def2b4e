"""Caches of a process: models, limits, live processes.

Postgres is the truth; a cached value is used for a few seconds."""
