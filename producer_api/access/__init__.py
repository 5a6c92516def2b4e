"""Authentication of callers, their rate limits and their limits of open streams.

The limits of a queue are in ``producer_api.submission``."""
