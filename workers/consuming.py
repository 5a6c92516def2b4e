"""Celery's consumer of one queue, made cheap for messages that may be lost: taking one is all that is asked of Redis.

A hint is nothing but a bell; the row in Postgres brings back a job whose hint is lost. So hints are taken without
acknowledgement, which saves two of the three round trips that kombu makes for each message (into its list of
unacknowledged ones, and out again), and no copy of a hint is delivered a second time. Knows kombu, and no job.
"""

from typing import Any

from kombu.messaging import Consumer


class HintConsumer(Consumer):
    """A consumer without acknowledgements: put in the place of ``app.amqp.Consumer``, which Celery makes its own of."""

    no_ack = True
    channel: Any  # kombu's; its annotations are not complete

    def consume(self, no_ack: bool | None = None) -> None:
        """Begin to take messages, and let what Celery acknowledges cost nothing: kombu would ask Redis all the same."""
        super().consume(no_ack)  # type: ignore[no-untyped-call]
        self.channel.qos.ack = _nothing


def _nothing(_delivery_tag: str) -> None:
    """Nothing was put aside for this message, so there is nothing to remove."""


def take_without_acknowledging(app: Any) -> None:
    """Let the worker of this Celery app consume with ``HintConsumer``."""
    app.amqp.Consumer = HintConsumer
