"""Tenants: their API keys, limits, quotas, usage, and the secrets that sign their webhooks.

Requests are checked against them in ``producer_api.access``."""
