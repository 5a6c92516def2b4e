"""Hints are taken without acknowledgement: the hooks of kombu and Celery that this stands on."""

from typing import Any

import redis
from kombu import Queue

from store.queue import Hint, HintPublisher, celery_app
from store.settings import Settings
from workers.consuming import take_without_acknowledging

QUEUE = "tiny@1"


def test_taking_a_hint_leaves_nothing_in_redis(settings: Settings, redis_client: redis.Redis) -> None:
    app = celery_app(settings)
    take_without_acknowledging(app)
    publisher = HintPublisher(app)
    publisher.publish([Hint(f"job_{n}", QUEUE, "generate:tiny@1") for n in range(3)])
    taken: list[str] = []

    def on_message(message: Any) -> None:
        assert redis_client.exists("unacked", "unacked_index") == 0
        calls = redis_client.info("stats")["total_commands_processed"]
        message.ack_log_error(None, ())  # what Celery calls
        assert redis_client.info("stats")["total_commands_processed"] == calls + 1, "no command but this INFO"
        taken.append(message.headers["id"])

    with app.connection_for_read() as connection:
        consumer = app.amqp.TaskConsumer(connection, queues=[Queue(QUEUE)])
        consumer.on_message = on_message
        with consumer:
            while len(taken) < 3:
                connection.drain_events(timeout=5)
    publisher.close()
    assert taken == ["job_0", "job_1", "job_2"]
    # With acknowledgements a connection that ends puts back what was not acknowledged.
    assert not redis_client.keys("unacked*")
    assert redis_client.llen(QUEUE) == 0
