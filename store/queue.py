"""Celery's sending side: one configuration for every process, and the hints that ring a worker's bell.

A hint carries a job id and nothing else; losing one, or sending it twice, is harmless, because the row in Postgres
decides. It knows nothing of jobs' states, and nothing here retries: the dispatcher announces what was not announced.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

from celery import Celery
from kombu.exceptions import KombuError, OperationalError

from store.errors import Unavailable
from store.failpoints import failpoint
from store.redis import AWAY, CONNECT_TIMEOUT_S, HEALTH_CHECK_S, SOCKET_TIMEOUT_S, broker_url, unavailable
from store.settings import Settings

TASK = "headrace.run"

_PUBLISH_TIMEOUT_S = 1.0
_PAUSE_AFTER_FAILURE_S = 1.0
_BATCH = 1000
Result = TypeVar("Result")
_AWAY = (*AWAY, KombuError, OperationalError)


@dataclass(frozen=True, slots=True)
class Hint:
    """A job that may be ready. ``shadow`` is the name that Flower shows, such as ``generate:smollm2@1``."""

    job_id: str
    queue: str
    shadow: str


def celery_app(settings: Settings) -> Celery:
    """Return a Celery app with the configuration that the API, the dispatcher, the workers and Flower share."""
    app = Celery("headrace", set_as_current=False)
    app.conf.update(
        broker_url=broker_url(settings.redis_url),
        broker_transport_options={
            "socket_timeout": SOCKET_TIMEOUT_S,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_keepalive": True,
            "health_check_interval": HEALTH_CHECK_S,
            # One list per queue: order is the dispatcher's, so the broker's four priority lists would only cost.
            "priority_steps": [0],
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
        worker_enable_remote_control=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_detect_quorum_queues=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        enable_utc=True,
    )
    return app


class HintPublisher:
    """Sends hints over one connection of its own. Safe to use from many threads, one of which sends at a time.

    When Redis is away a call fails within two seconds, and for the next second at once, so that callers who are
    waiting in line do not each pay the time-out.
    """

    def __init__(self, app: Celery, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        self._lock = Lock()
        self._connection: Any = None  # kombu's; like its producers it has no complete annotations
        self._paused_until = 0.0

    def publish(self, hints: Sequence[Hint]) -> None:
        """Send the hints in one pipeline. Raises Unavailable; some may have been sent then."""
        if not hints:
            return
        failpoint("hint.before_publish")
        with self._lock:
            self._guarded(lambda producer: self._send(producer, hints))

    def depth(self, queue: str) -> int:
        """Return how many hints wait in Redis for this queue. Raises Unavailable."""
        with self._lock:
            return self._guarded(lambda producer: int(producer.channel.client.llen(queue)))

    def close(self) -> None:
        """Drop the connection."""
        with self._lock:
            self._drop()

    def _send(self, producer: Any, hints: Sequence[Hint]) -> None:
        with producer.batch(max_size=_BATCH):
            for hint in hints:
                self._app.send_task(
                    TASK,
                    args=(hint.job_id,),
                    task_id=hint.job_id,
                    queue=hint.queue,
                    # send_task ignores task_default_priority.
                    priority=0,
                    shadow=hint.shadow,
                    argsrepr=hint.job_id,
                    kwargsrepr="{}",
                    # Nothing to declare: the default exchange needs no binding, so a wiped Redis loses none.
                    declare=(),
                    ignore_result=True,
                    add_to_parent=False,
                    retry=False,
                    producer=producer,
                )

    def _guarded(self, call: Callable[[Any], Result]) -> Result:
        if self._clock() < self._paused_until:
            raise Unavailable("Redis could not be reached a moment ago", code="redis_unavailable")
        try:
            return call(self._producer())
        except _AWAY as error:
            self._drop()
            self._paused_until = self._clock() + _PAUSE_AFTER_FAILURE_S
            raise unavailable(error) from error

    def _producer(self) -> Any:
        if self._connection is None:
            self._connection = self._app.connection_for_write(
                transport_options={
                    "socket_timeout": _PUBLISH_TIMEOUT_S,
                    "socket_connect_timeout": _PUBLISH_TIMEOUT_S,
                    # kombu would otherwise try to open the channel for ever.
                    "max_retries": 0,
                    "connect_retries_timeout": _PUBLISH_TIMEOUT_S,
                }
            )
        return self._app.amqp.Producer(self._connection, auto_declare=False)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*_AWAY):
                connection.release()
