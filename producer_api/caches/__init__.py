"""Caches of a process: models and live processes. Those of keys and limits are in ``producer_api.access``.

Postgres is the truth; a cached value is used for a few seconds."""
