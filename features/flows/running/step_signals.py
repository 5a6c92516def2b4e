"""What others are told when steps begin and end: hints of the steps that are ready, and a wake-up for readers.

Both go through Redis, from a thread of their own, because no claim and no outcome may wait for it. What is lost there
is found in Postgres a moment later: by the dispatcher, and by the readers.
"""

from collections.abc import Sequence
from queue import SimpleQueue
from threading import Thread

import structlog

from headrace.store.errors import HeadraceError
from headrace.store.jobs.parent_part import Settled
from headrace.store.redis.celery_queue import Hint
from headrace.store.redis.hint_announcer import HintAnnouncer
from headrace.store.registry.models import shadow_name
from headrace.store.streams.stream_log import StreamPublisher

log = structlog.get_logger(__name__)


class RedisSignals:
    """Signals through Redis. Its thread sends nothing until ``start``."""

    def __init__(self, hints: HintAnnouncer, streams: StreamPublisher) -> None:
        self.hints = hints
        self._streams = streams
        self._answers: SimpleQueue[tuple[str, ...] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="step-signals", daemon=True)

    def start(self) -> None:
        """Start sending."""
        self.hints.start()
        self._thread.start()

    def stop(self) -> None:
        """Send what waits, and stop."""
        self.hints.stop()
        if self._thread.is_alive():
            self._answers.put(None)
            self._thread.join(timeout=2)

    def settled(self, settled: Settled) -> None:
        """As ``ParentWork.settled``."""
        for step in settled.announced:
            self.hints.announce(Hint(step.id, step.queue, shadow_name(step.task, step.model, step.model_version)))
        self.begun(settled.answers)

    def begun(self, answers: Sequence[str]) -> None:
        """As ``ParentWork.begun``."""
        if answers:
            self._answers.put(tuple(answers))

    def _run(self) -> None:
        while (answers := self._answers.get()) is not None:
            try:
                self._streams.wake(answers)
            except HeadraceError as error:
                log.debug("readers_not_woken", error=error.message)
            except Exception as error:  # noqa: BLE001 - a defect must not end the thread
                log.error("readers_not_woken", error=type(error).__name__)
