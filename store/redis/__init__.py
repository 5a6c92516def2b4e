"""Redis: the connection, the queue of hints for Celery, the rate limiter, and notices of changed keys.

Token streams are ``store.streams``."""
