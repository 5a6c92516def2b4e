"""Deltas and outcomes of one change, collected while the engine's lock is held and delivered after its release.

Invariant: the deltas of a request are delivered before its outcome, and an outcome is delivered once.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Generic, TypeVar

from models.engine.requests import Delta, EngineError

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class Outbox(Generic[ResultT]):
    """The deltas and outcomes of a step, or of a stop."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.completions: list[tuple[Future[ResultT], ResultT]] = []
        self.failures: list[tuple[Future[ResultT], EngineError]] = []

    def add(self, delta: Delta | None) -> None:
        """Add the new text of a request, if there is any."""
        if delta is not None:
            self.deltas.append(delta)

    def deliver(self, on_deltas: Callable[[list[Delta]], None], on_room: Callable[[], None]) -> None:
        """Deliver the deltas in one call, then the outcomes; then call ``on_room`` if requests have ended."""
        if self.deltas:
            call_out("on_deltas", partial(on_deltas, self.deltas))
        for future, result in self.completions:
            call_out("on_done", partial(future.set_result, result))
        for failed, error in self.failures:
            call_out("on_done", partial(failed.set_exception, error))
        if self.completions or self.failures:
            call_out("on_room", on_room)


def call_out(name: str, callback: Callable[[], object]) -> None:
    """Call foreign code. Its error is logged: it must not end the engine or keep the next callback from its call."""
    try:
        callback()
    except BaseException:  # SystemExit too: in this thread it would end the engine alone
        log.exception("callback_failed name=%s", name)
