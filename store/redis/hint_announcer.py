"""Publishes hints in the background, after the transaction that marked their jobs as announced."""

from queue import Empty, SimpleQueue
from threading import Thread

import structlog

from headrace.store.errors import Unavailable
from headrace.store.redis.celery_queue import Hint, HintPublisher

_log = structlog.get_logger(__name__)

_MAX_HINTS = 1000  # of one Redis pipeline


class HintAnnouncer:
    """A thread that publishes hints, all waiting ones in one call. A hint is lost while Redis is away."""

    def __init__(self, publisher: HintPublisher) -> None:
        self._publisher = publisher
        self._hints: SimpleQueue[Hint | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="announcer", daemon=True)

    def start(self) -> None:
        """Start publishing."""
        self._thread.start()

    def stop(self) -> None:
        """Publish the hints that wait, and stop."""
        if self._thread.is_alive():
            self._hints.put(None)
            self._thread.join(timeout=5)
        self._publisher.close()

    def announce(self, hint: Hint) -> None:
        """Let a hint be published soon. Does not block."""
        self._hints.put(hint)

    def _run(self) -> None:
        while (hint := self._hints.get()) is not None:
            hints, is_last = self._gather(hint)
            try:
                self._publisher.publish(hints)
            except Unavailable as error:
                # The dispatcher announces these jobs again.
                _log.warning("hints_not_published", jobs=len(hints), reason=error.message)
            except Exception:  # noqa: BLE001 - a defect must not end the thread
                _log.exception("hints_not_published", jobs=len(hints))
            if is_last:
                return

    def _gather(self, first: Hint) -> tuple[list[Hint], bool]:
        """Return the hints that wait now, and whether the thread shall stop after them."""
        hints = [first]
        try:
            while len(hints) < _MAX_HINTS:
                hint = self._hints.get_nowait()
                if hint is None:
                    return hints, True
                hints.append(hint)
        except Empty:
            pass
        return hints, False
