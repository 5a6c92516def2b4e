"""Who is calling and how much they may send: authentication, rate limits, limits of streams.

The limits of a queue are in ``producer_api.submission``."""
