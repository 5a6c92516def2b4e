"""How jobs reach a worker: Celery with its consumer and thread pool, the fast lane, and polling of Postgres.

A claimed job is ``workers.runs``'s.
"""
