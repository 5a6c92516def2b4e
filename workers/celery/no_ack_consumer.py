"""A consumer without acknowledgements, for messages that may be lost: each message costs one call of Redis.

A hint only announces a waiting job, and the dispatcher announces the job again if its hint is lost. So hints are taken
without acknowledgement. This saves two of the three round trips that kombu makes for each message (into its list of
unacknowledged messages, and out again), and no hint is delivered twice.

Other messages in the queue, or in the worker's mailbox, are counted and dropped: kombu and Celery would end the worker,
or its connection, for a message that they cannot read.
"""

from collections.abc import Callable
from queue import Empty
from typing import Any

import structlog
from kombu.messaging import Consumer

from store.redis.celery_queue import hint_of

log = structlog.get_logger(__name__)


class HintConsumer(Consumer):
    """A consumer without acknowledgements; it replaces ``app.amqp.Consumer``, from which Celery makes its consumer."""

    no_ack = True
    channel: Any  # kombu's; its annotations are not complete
    on_junk: Callable[[], None]

    def consume(self, no_ack: bool | None = None) -> None:
        """Begin to take messages. An acknowledgement by Celery does nothing, because kombu would call Redis for it."""
        super().consume(no_ack)  # type: ignore[no-untyped-call]
        self.channel.qos.ack = _nothing
        transport = self.channel.connection
        for queue in self.queues or ():
            transport._callbacks[queue.name] = self._checked(transport._callbacks[queue.name])  # noqa: SLF001
        self._guard(transport)

    def _checked(self, take: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return ``take`` for hints; other messages are dropped."""

        def take_hint(raw: Any) -> None:
            if hint_of(raw) is None:
                self._drop("not a hint")
            else:
                take(raw)

        return take_hint

    def _guard(self, transport: Any) -> None:
        """Keep the connection when a message cannot be read. Errors of the connection itself still end it."""
        # kombu counts KeyError as a connection error, but a message without its fields raises it too.
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
            except Exception as error:  # noqa: BLE001 - the message may be anything that was written into Redis
                self._drop(type(error).__name__)

        return guarded

    def _drop(self, reason: str) -> None:
        log.warning("junk_dropped", reason=reason)
        self.on_junk()


def _nothing(_delivery_tag: str) -> None:
    """The message is in no list of unacknowledged messages."""


def take_without_acknowledging(app: Any, on_junk: Callable[[], None]) -> None:
    """Make the worker of this app consume with ``HintConsumer``; ``on_junk`` is called for each dropped message."""
    app.amqp.Consumer = type("HintConsumer", (HintConsumer,), {"on_junk": staticmethod(on_junk)})
