"""The Celery configuration of every process, and the hints that are sent through it.

A hint carries only a job id. A lost or repeated hint is harmless, because the row in Postgres decides. Nothing is
retried here: the dispatcher announces jobs again.
"""

import re
import time
from base64 import b64decode
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import orjson
from celery import Celery
from kombu.exceptions import BatchPublishError, KombuError, OperationalError

from headrace.store.errors import Unavailable
from headrace.store.failpoints import failpoint
from headrace.store.redis.connection import (
    AWAY,
    CONNECT_TIMEOUT_S,
    HEALTH_CHECK_S,
    SOCKET_TIMEOUT_S,
    broker_options,
    connect,
    unavailable,
)
from headrace.store.settings import Settings

TASK = "headrace.run"

_PUBLISH_TIMEOUT_S = 1.0
BRIEFLY: dict[str, Any] = {
    "socket_timeout": _PUBLISH_TIMEOUT_S,
    "socket_connect_timeout": _PUBLISH_TIMEOUT_S,
    # kombu would otherwise try to open the channel for ever.
    "max_retries": 0,
    "connect_retries_timeout": _PUBLISH_TIMEOUT_S,
}
"""Options of a connection that gives up soon while Redis is away."""
_PAUSE_AFTER_FAILURE_S = 1.0
# kombu's priority of the hints in the fast lane. The lowest number is taken first.
_FAST_LANE = -1
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
Result = TypeVar("Result")
_AWAY = (*AWAY, KombuError, OperationalError)


@dataclass(frozen=True, slots=True)
class Hint:
    """A job that may be ready. ``shadow`` is the name in Flower, such as ``generate:smollm2@1``.

    ``goes_ahead``: it takes the fast lane (``store.scheduling.backlog``).
    """

    job_id: str
    queue: str
    shadow: str
    goes_ahead: bool = False

    @property
    def into(self) -> str:
        """The Redis list for the hint, which is kombu's routing key without an exchange."""
        return fast_lane_list(self.queue) if self.goes_ahead else self.queue


def fast_lane_list(queue: str) -> str:
    """Return kombu's name of the fast lane of a queue: workers read this list before the queue's own."""
    return f"{queue}\x06\x16{_FAST_LANE}"


def celery_app(settings: Settings) -> Celery:
    """Return a Celery app with the configuration that the API, the dispatcher, the workers and Flower share."""
    app = Celery("headrace", set_as_current=False)
    broker = broker_options(settings.redis_url)
    of_transport = broker.pop("broker_transport_options", {})
    app.conf.update(
        **broker,
        broker_transport_options={
            **of_transport,
            "socket_timeout": SOCKET_TIMEOUT_S,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_keepalive": True,
            "health_check_interval": HEALTH_CHECK_S,
            # Two lists per queue instead of the broker's four: the dispatcher decides the order, and the fast lane is
            # for tenants with less than their fair share in flight.
            "priority_steps": [_FAST_LANE, 0],
        },
        # A full Redis raises a channel error, which kills a worker unless it is retried.
        broker_channel_error_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        # Acknowledged when taken: Postgres holds the job, and its lease brings it back.
        task_acks_late=False,
        task_default_queue="headrace",
        task_default_priority=0,
        task_track_started=False,
        task_send_sent_event=False,
        worker_send_task_events=False,
        worker_enable_remote_control=settings.celery_control != "off",
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_detect_quorum_queues=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        enable_utc=True,
    )
    return app


# Fields of a Celery message that would make a worker delay, drop or unpack it. Every stock message has a ``timelimit``.
_NEVER = ("eta", "expires", "timelimit", "compression")
_NOTHING = (None, False, "", [None, None])
_JOB_ID = re.compile(r"[!-~]{1,128}")


def hint_of(message: object) -> str | None:
    """Return the job id of a decoded message; None if it does not have the form that ``HintPublisher`` sends."""
    match message:
        case {
            "body": str(body),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"task": str(task), "id": str(job_id), **headers},
            "properties": {"delivery_tag": str(), "delivery_info": dict(), "body_encoding": "base64"},
        } if task == TASK and _JOB_ID.fullmatch(job_id) and all(headers.get(name) in _NOTHING for name in _NEVER):
            try:
                is_right = orjson.loads(b64decode(body)) == [[job_id], {}, _EMBED]
            except ValueError:
                return None
            return job_id if is_right else None
    return None


class HintPublisher:
    """Sends hints over one connection of its own. Safe to use from many threads, one of which sends at a time.

    While Redis is away a call fails within two seconds, and for the next second at once, so that waiting callers do not
    each pay the time-out.
    """

    def __init__(self, app: Celery, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        self._lock = Lock()
        self._producer: Any = None  # kombu's; it has no complete annotations
        self._paused_until = 0.0

    def publish(self, hints: Sequence[Hint]) -> None:
        """Send the hints in pipelines. Raises Unavailable; some may have been sent then."""
        if not hints:
            return
        failpoint("hint.before_publish")
        with self._lock:
            self._guarded(lambda producer: self._send(producer, hints))

    def depth(self, queue: str) -> int:
        """Return how many hints wait in Redis for this queue. Raises Unavailable."""
        with self._lock:
            return self._guarded(lambda producer: int(producer.channel.queue_declare(queue).message_count))

    def close(self) -> None:
        """Drop the connection."""
        with self._lock:
            self._drop()

    def _send(self, producer: Any, hints: Sequence[Hint]) -> None:
        with producer.batch():
            for hint in hints:
                job_id = hint.job_id
                message = self._app.amqp.create_task_message(
                    job_id,
                    TASK,
                    args=(job_id,),
                    shadow=hint.shadow,
                    argsrepr=job_id,
                    kwargsrepr="{}",
                    ignore_result=True,
                )
                producer.publish(message.body, routing_key=hint.into, headers=message.headers, **message.properties)

    def _guarded(self, call: Callable[[Any], Result]) -> Result:
        if self._clock() < self._paused_until:
            raise Unavailable("Redis could not be reached a moment ago", code="redis_unavailable")
        try:
            return call(self._connected())
        except _AWAY as error:
            self._drop()
            self._paused_until = self._clock() + _PAUSE_AFTER_FAILURE_S
            reason = error.__cause__ if isinstance(error, BatchPublishError) else error
            raise unavailable(reason or error) from error

    def _connected(self) -> Any:
        if self._producer is None:
            connection = self._app.connection_for_write(transport_options=BRIEFLY)
            self._producer = self._app.amqp.Producer(connection, auto_declare=False)
        return self._producer

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(*_AWAY):
                producer.connection.release()


class FastLaneHints:
    """Takes hints of a worker's queues from their fast lanes, over a connection of its own.

    ``adapters`` returns the queues beside ``queue``.
    """

    def __init__(
        self,
        redis_url: str,
        queue: str,
        on_junk: Callable[[], None],
        adapters: Callable[[], Sequence[str]] = lambda: (),
    ) -> None:
        self._client = connect(redis_url, retries=0)
        self._queue = queue
        self._adapters = adapters
        self._on_junk = on_junk

    def take(self, wait_s: float) -> str | None:
        """Return the job id of the next hint; None if none came in time, or if it is no hint. Raises Unavailable."""
        try:
            lists = [fast_lane_list(queue) for queue in (self._queue, *self._adapters())]
            found = self._client.brpop(lists, timeout=wait_s)
        except AWAY as error:
            raise unavailable(error) from error
        if found is None:
            return None
        job_id = _read(found[1])
        if job_id is None:
            self._on_junk()
        return job_id

    def close(self) -> None:
        """Drop the connection."""
        self._client.close()


def _read(message: bytes | str) -> str | None:
    try:
        return hint_of(orjson.loads(message))
    except orjson.JSONDecodeError:
        return None
