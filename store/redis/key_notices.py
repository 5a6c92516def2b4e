"""The word, by Redis, that a key or a tenant has changed: whoever remembers principals looks them up again.

A lost word costs only time, because nobody remembers for long.
"""

import redis

from store.redis.connection import told_plainly

KEYS_CHANNEL = "headrace:keys"


def publish_change(client: redis.Redis, changed_id: str) -> None:
    """Name a key or a tenant that has changed. Raises Unavailable if Redis is away."""
    with told_plainly(client):
        client.publish(KEYS_CHANNEL, changed_id)
