"""Sending webhooks: signing, retries, and turns between receivers.

The outbox is ``store.webhooks``, the guard against internal addresses ``store.calls``."""
