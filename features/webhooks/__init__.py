"""Webhooks: endpoints, secrets, the outbox of deliveries, their log, redelivery, and the sender, which calls.

The core writes a delivery in the transaction that ends a job (``store.jobs.terminal``).
"""
