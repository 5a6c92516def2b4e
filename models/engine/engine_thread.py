"""A thread that takes steps while somebody is inside, and what other threads may do meanwhile: the part that engines
share. It knows a lock, a clock and who is inside; what a step is, and how outcomes are told, is the engine's own.

Rules: the lock is never held while the model runs or foreign code is called; everybody who was let in gets exactly one
outcome; whatever the thread dies of, everybody inside is told.
"""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from models.engine.outbox import call_out
from models.engine.requests import EngineStopped, RequestInvalid

log = logging.getLogger(__name__)

Inside = TypeVar("Inside")


class Stepping(ABC, Generic[Inside]):
    """Start, stop, health and the door, for requests that are kept as ``Inside``.

    ``on_credit`` is called when requests left, ``on_failed`` with the error that the thread died of. If one of them
    raises, that is logged and changes nothing.
    """

    on_credit: Callable[[], None] | None = None
    on_failed: Callable[[BaseException], None] | None = None

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._inside: dict[str, Inside] = {}
        self._progress_at = clock()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End after the step under way; whoever is inside gets EngineStopped, at the latest after ``timeout_s``."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        self._close()  # a thread that was never started, or hangs in its step, tells nobody

    def is_healthy(self, max_step_s: float) -> bool:
        """Return True if the thread lives, takes requests, and made progress within ``max_step_s`` unless idle."""
        with self._changed:
            return self._thread.is_alive() and not self._stopping and self._step_age_s() <= max_step_s

    def _enter(self, request_id: str, inside: Inside, now: float) -> None:
        """Let a request in, which the next step will find. The caller holds the lock.

        Raises EngineStopped when stopping, and RequestInvalid for an id that is in use.
        """
        if self._stopping:
            raise EngineStopped("the engine is stopping")
        if request_id in self._inside:
            raise RequestInvalid(f"the request id {request_id} is in use")
        if not self._inside:
            self._progress_at = now
        self._inside[request_id] = inside
        self._changed.notify_all()

    def _has_slots(self, count: int, max_slots: int) -> bool:
        """Return True if so many more may come inside. The caller holds the lock."""
        return not self._stopping and len(self._inside) + count <= max_slots

    def _step_age_s(self) -> float:
        return max(0.0, self._clock() - self._progress_at) if self._inside else 0.0

    def _loop(self) -> None:
        try:
            while self._wait_for_work():
                self._step()
        except BaseException as error:  # whatever it is, the thread ends here: tell on_failed, and all who wait
            log.exception("engine_died")
            self._close()
            if self.on_failed is not None:
                call_out("on_failed", partial(self.on_failed, error))
        else:
            self._close()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._inside or self._stopping)
            return not self._stopping

    @abstractmethod
    def _step(self) -> None:
        """Decide, run, record."""

    @abstractmethod
    def _close(self) -> None:
        """Take nobody any more, and fail everybody who is inside. May be called more than once."""
