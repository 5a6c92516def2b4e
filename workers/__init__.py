"""Runs jobs: Celery takes a hint, Postgres grants the claim, the engine in this process answers."""
