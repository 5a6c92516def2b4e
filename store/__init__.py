"""Shared by the API, the workers and the command line: settings, errors, and all access to Postgres, Redis and files.

Each folder is one subject and imports only subjects below it (``pyproject.toml`` lists the order); no HTTP, no
Celery worker and no model is in here."""
