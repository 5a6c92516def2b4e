"""Celery's consumer of one queue, made cheap for messages that may be lost: taking one is all that is asked of Redis.

A hint is nothing but a bell; the row in Postgres brings back a job whose hint is lost. So hints are taken without
acknowledgement, which saves two of the three round trips that kombu makes for each message (into its list of
unacknowledged ones, and out again), and no copy of a hint is delivered a second time.

What else lies in the queue, or comes to the worker's mailbox, is counted and dropped: kombu and Celery would end the
worker, or its connection, for a message that they cannot read. Knows kombu, and no job.
"""

from collections.abc import Callable
from queue import Empty
from typing import Any

import structlog
from kombu.messaging import Consumer

from store.redis.celery_queue import hint_of

log = structlog.get_logger(__name__)


class HintConsumer(Consumer):
    """A consumer without acknowledgements: put in the place of ``app.amqp.Consumer``, which Celery makes its own of."""

    no_ack = True
    channel: Any  # kombu's; its annotations are not complete
    on_junk: Callable[[], None]

    def consume(self, no_ack: bool | None = None) -> None:
        """Begin to take messages, and let what Celery acknowledges cost nothing: kombu would ask Redis all the same."""
        super().consume(no_ack)  # type: ignore[no-untyped-call]
        self.channel.qos.ack = _nothing
        transport = self.channel.connection
        for queue in self.queues or ():
            transport._callbacks[queue.name] = self._checked(transport._callbacks[queue.name])  # noqa: SLF001
        self._guard(transport)

    def _checked(self, take: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return ``take`` for hints alone."""

        def take_hint(raw: Any) -> None:
            if hint_of(raw) is None:
                self._drop("not a hint")
            else:
                take(raw)

        return take_hint

    def _guard(self, transport: Any) -> None:
        """Let nothing that is read from this connection end it, unless the connection itself is at fault."""
        # kombu counts KeyError among these, which a message without its fields raises as well.
        broken = (*transport.connection_errors, *transport.channel_errors, Empty)
        transport._deliver = self._guarded(  # noqa: SLF001
            transport._deliver,  # noqa: SLF001
            tuple(error for error in broken if error is not KeyError),
        )
        transport.cycle.on_readable = self._guarded(transport.cycle.on_readable, broken)

    def _guarded(self, read: Callable[..., Any], broken: tuple[type[Exception], ...]) -> Callable[..., Any]:
        def guarded(*args: Any) -> Any:
            try:
                return read(*args)
            except broken:
                raise
            except Exception as error:  # noqa: BLE001 - it is made of what anybody wrote into Redis
                self._drop(type(error).__name__)

        return guarded

    def _drop(self, reason: str) -> None:
        log.warning("junk_dropped", reason=reason)
        self.on_junk()


def _nothing(_delivery_tag: str) -> None:
    """Nothing was put aside for this message, so there is nothing to remove."""


def take_without_acknowledging(app: Any, on_junk: Callable[[], None]) -> None:
    """Let the worker of this Celery app consume with ``HintConsumer``; ``on_junk`` is called for what it drops."""
    app.amqp.Consumer = type("HintConsumer", (HintConsumer,), {"on_junk": staticmethod(on_junk)})
