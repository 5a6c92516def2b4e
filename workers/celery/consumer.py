"""A worker's Celery consumer: what it takes from Redis, and when.

It takes a message only while the engine has room: a bootstep wraps ``channel.qos.can_consume``, which kombu asks before
each BRPOP. Celery's own ``worker_disable_prefetch`` uses the same hook.

It takes hints without acknowledgement. A hint only announces a waiting job, and the dispatcher announces the job again
if its hint is lost. This saves two of the three round trips that kombu makes for each message (into its list of
unacknowledged messages, and out again), and no hint is delivered twice.

Other messages in the queue, or in the worker's mailbox, are counted and dropped: kombu and Celery would end the worker,
or its connection, for a message that they cannot read.

Its remote control only reads. A client with write access to Redis can send a command to every worker, and some of
Celery's commands end the worker, revoke its tasks or change its queues. Flower needs only those that read. Jobs are
cancelled through the API, workers are stopped by signals.
"""

from collections import deque
from collections.abc import Callable
from functools import cache
from queue import Empty
from typing import Any

import structlog
from celery import Celery, bootsteps
from celery.worker.consumer.tasks import Tasks
from kombu.connection import Connection
from kombu.pidbox import Node
from kombu.transport.virtual import Message

from headrace.store.redis.celery_queue import hint_of
from headrace.workers.celery.adapter_queues import AdapterQueues
from headrace.workers.celery.attempt_events import ReportedRunner
from headrace.workers.runs.engine_admission import EngineAdmission

log = structlog.get_logger(__name__)

READING = frozenset(
    {
        "active",
        "active_queues",
        "clock",
        "conf",
        "enable_events",
        "heartbeat",
        "ping",
        "query_task",
        "registered",
        "reserved",
        "revoked",
        "scheduled",
        "stats",
    }
)
_LONGEST = 64  # characters of a command in the log


class Junk(Exception):
    """A message is no hint, or cannot be read."""


class CheckedMessage(Message):
    """A message that raises Junk if it cannot be read."""

    def __init__(self, payload: Any, *args: Any, **kwargs: Any) -> None:
        self.is_hint = hint_of(payload) is not None
        try:
            super().__init__(payload, *args, **kwargs)  # type: ignore[no-untyped-call]
        except Exception as error:
            raise Junk(type(error).__name__) from error


def take_without_acknowledging(app: Any, on_junk: Callable[[], None]) -> None:
    """Make the worker of this app take hints so. ``on_junk`` is called for each message that is dropped."""

    class HintConnection(Connection):
        """A connection whose transport is kombu's own for the address, and takes hints."""

        def get_transport_cls(self) -> Any:
            """Return the class of the transport."""
            base = super().get_transport_cls()  # type: ignore[no-untyped-call]
            return hint_transport(base, on_junk)

    app.amqp.Connection = HintConnection


@cache
def hint_transport(base: Any, on_junk: Callable[[], None]) -> Any:
    """Return ``base``, a transport of kombu for Redis, as one that takes hints."""

    class HintChannel(base.Channel):  # type: ignore[misc]  # kombu's annotations are not complete
        """Takes hints without acknowledgement, and commands."""

        Message = CheckedMessage

        def basic_consume(self, queue: str, no_ack: bool, callback: Callable[[Any], None], **options: Any) -> Any:
            """Begin to take messages of a queue. Celery acknowledges tasks, and no commands."""

            def take(message: CheckedMessage) -> None:
                if not no_ack and not message.is_hint:
                    raise Junk("not a hint")
                try:
                    callback(message)
                except KeyError as error:  # a field of the message; kombu would take it for a lost connection
                    raise Junk(type(error).__name__) from error

            return super().basic_consume(queue, no_ack=True, callback=take, **options)

        def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
            """Do nothing: the message is in no list of unacknowledged messages."""

    class HintTransport(base):  # type: ignore[misc]  # as above
        """Keeps the connection when a message cannot be read. Errors of the connection itself still end it."""

        Channel = HintChannel

        def on_readable(self, fileno: int) -> None:
            """Take what has come."""
            try:
                super().on_readable(fileno)
            except (*self.connection_errors, *self.channel_errors, Empty):
                raise
            except Exception as error:  # noqa: BLE001 - the message may be anything that was written into Redis
                log.warning("junk_dropped", reason=str(error) if isinstance(error, Junk) else type(error).__name__)
                on_junk()

    return HintTransport


def admission_step(
    admission: EngineAdmission, adapters: AdapterQueues | None, reported: ReportedRunner
) -> type[bootsteps.StartStopStep]:
    """Return the consumer bootstep that makes Celery ask ``admission`` before it takes a message.

    It also takes messages of the queues of ``adapters``, as they come and go, and sends the events of ``reported``.
    """

    class AdmissionStep(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no annotations
        """Installed again after every reconnect, which brings a new channel."""

        requires = (Tasks,)

        def start(self, c: Any) -> None:
            """Wrap the channel's quality of service, and let new room wake the event loop."""
            ask_before_consuming(c.task_consumer.channel.qos, admission)
            admission.waker.attach(lambda: wake(c.hub))
            reported.attach(event_sender(c))
            send_events_if_heard(c)
            if adapters is not None:
                adapters.attach(lambda: c.hub.call_soon(follow, c, adapters))
                follow(c, adapters)

    return AdmissionStep


def send_events_if_heard(consumer: Any) -> None:
    """Let a Celery consumer send events of tasks if there are receivers. Flower tells a new worker seconds later."""
    if consumer.task_consumer.channel.get_table(consumer.app.conf.event_exchange):
        consumer.event_dispatcher.groups.add("task")  # as Celery's command enable_events


def event_sender(consumer: Any) -> Callable[..., None]:
    """Return a function that sends an event from any thread, in the order of its calls, if there are receivers."""
    waiting: deque[tuple[str, dict[str, Any]]] = deque()

    def send_waiting() -> None:
        while waiting:
            kind, fields = waiting.popleft()
            try:
                consumer.event_dispatcher.send(kind, **fields)
            except Exception as error:  # noqa: BLE001 - on the event loop it would end the worker
                log.warning("event_not_sent", reason=type(error).__name__)

    def send(kind: str, **fields: Any) -> None:
        dispatcher = consumer.event_dispatcher
        if dispatcher is not None and dispatcher.enabled:
            waiting.append((kind, fields))
            consumer.hub.call_soon(send_waiting)  # kombu calls in any order what it is given meanwhile

    return send


def follow(consumer: Any, adapters: AdapterQueues) -> None:
    """Make a Celery consumer take messages of the adapters' queues, and of no adapter that is gone."""
    known: set[str] = getattr(consumer.app, "adapter_queues", set())
    served = set(adapters.names())
    for queue in served:
        consumer.add_task_queue(queue)
    for queue in known - served:
        consumer.cancel_task_queue(queue)
    consumer.app.adapter_queues = served


def ask_before_consuming(qos: Any, admission: EngineAdmission) -> None:
    """Make ``qos.can_consume`` ask ``admission`` as well."""
    original = qos.can_consume

    def can_consume() -> bool:
        return admission.has_credit() and bool(original())

    qos.can_consume = can_consume


def wake(hub: Any) -> None:
    """End the event loop's wait from another thread, so that it asks again."""
    hub.call_soon(_nothing)


def _nothing() -> None:
    """The hub runs it after it woke up."""


class ReadingNode(Node):
    """A worker's mailbox that accepts only the commands of ``READING``."""

    def handle(self, method: object, arguments: Any = None) -> Any:
        """Run a command, or refuse it in the answer."""
        if method in READING:
            return super().handle(method, arguments)  # type: ignore[no-untyped-call]
        log.warning("control_refused", command=str(method)[:_LONGEST])
        return {"error": "refused: this worker's remote control reads only (HEADRACE_CELERY_CONTROL)"}


def only_reading(app: Celery) -> None:
    """Give the worker of this app a ``ReadingNode``. Call it before the worker is made."""
    app.control.mailbox.node_cls = ReadingNode
