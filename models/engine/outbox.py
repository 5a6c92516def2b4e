"""What the engine has to tell the world, collected under its lock and told outside of it.

Invariant: a request's deltas are told before its outcome, and an outcome is told once.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from models.engine.requests import Completion, Delta, EngineError

log = logging.getLogger(__name__)


class Outbox:
    """The deltas and outcomes of one step, or of whatever else ends requests."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.completions: list[tuple[Future[Completion], Completion]] = []
        self.failures: list[tuple[Future[Completion], EngineError]] = []
        self.ended_ids: list[str] = []

    def add(self, delta: Delta | None) -> None:
        """Put a request's new text in, if there is any."""
        if delta is not None:
            self.deltas.append(delta)

    def deliver(self, on_deltas: Callable[[list[Delta]], None], on_credit: Callable[[], None] | None) -> None:
        """Tell everything: the deltas in one call, then the outcomes, then that there is room again."""
        if self.deltas:
            call_out("on_deltas", partial(on_deltas, self.deltas))
        for future, completion in self.completions:
            call_out("on_done", partial(future.set_result, completion))
        for failed, error in self.failures:
            call_out("on_done", partial(failed.set_exception, error))
        if on_credit is not None and (self.completions or self.failures):
            call_out("on_credit", on_credit)


def call_out(name: str, callback: Callable[[], object]) -> None:
    """Call foreign code, whose failure must neither become the engine's nor keep the next one from being called."""
    try:
        callback()
    except BaseException:  # a SystemExit too: in this thread it would end nothing but the engine
        log.exception("callback_failed name=%s", name)
