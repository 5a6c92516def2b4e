"""Reading stored jobs for callers: many reads in one query, lists on a pool of their own, redacted values restored.

The statements are in ``store.jobs``."""
