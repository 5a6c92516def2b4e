"""Sending webhooks: signing, retries, turns between receivers, and the guard against internal addresses.

The outbox is ``store.webhooks``."""
