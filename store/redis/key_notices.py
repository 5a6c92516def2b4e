"""Notices through Redis that a key or a tenant has changed, so that the API processes drop it from their caches.

A lost notice costs only time, because the caches expire soon.
"""

import redis

from headrace.store.redis.connection import translated_errors

KEYS_CHANNEL = "headrace:keys"


def publish_change(client: redis.Redis, changed_id: str) -> None:
    """Publish the id of a key or a tenant that has changed. Raises Unavailable if Redis is away."""
    with translated_errors(client):
        client.publish(KEYS_CHANNEL, changed_id)
