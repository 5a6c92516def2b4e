"""The messages that announce jobs, without a server."""

from typing import Any

from celery import Celery

from headrace.store.redis.celery_queue import Hint, HintPublisher


def message_of(hint: Hint) -> dict[str, Any]:
    """Return the message of a hint as it lies in Redis, decoded."""
    app = Celery(broker="memory://", set_as_current=False)
    HintPublisher(app).publish([hint])
    with app.connection() as connection:
        return dict(connection.default_channel.basic_get(hint.into, no_ack=True).serializable())
