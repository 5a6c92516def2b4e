"""Tenants: their API keys, limits, quotas, usage, and the secrets that sign their webhooks.

Checking a request against them is ``producer_api.access``."""
