"""A runner that fails where a prompt asks for it: what a device, a driver or a bad weight does, when a test wants it.

Wraps any ``Runner``, or any ``Encoder``. A fault strikes in each step that a request takes part in whose prompt
contains the fault's mark, so it follows the request from worker to worker, as a poison job does. Never there unless a
test's settings ask for it.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from models.engine.requests import EncodeRow, EngineRequest, RequestId
from models.engine.runner import Encoder, Row, Runner, Sampled, StepPlan

EXIT_CODE = 86


class Fault(StrEnum):
    """What a marked prompt does to its step. ``NAN`` meets its own row alone."""

    EXIT = "exit"  # the process is gone, without a word
    RAISE = "raise"
    OOM = "oom"
    NAN = "nan"
    HANG = "hang"  # waits for ever
    SPIN = "spin"  # computes for ever


class FaultyRunner:
    """``runner`` with faults. ``marks`` are the faults by the text that asks for them; ``decode`` reads a prompt.

    ``midway`` is called in each step, when it is computed and nobody knows yet.
    """

    def __init__(
        self,
        runner: Runner,
        marks: Mapping[str, Fault],
        *,
        decode: Callable[[Sequence[int]], str],
        midway: Callable[[], None] = lambda: None,
        exit_now: Callable[[int], object] = os._exit,
    ) -> None:
        self.context_window = runner.context_window
        self.eos_token_ids = runner.eos_token_ids
        self.num_blocks = runner.num_blocks
        self.block_tokens = runner.block_tokens
        self.spare_tokens = runner.spare_tokens
        self._runner = runner
        self._marks = marks
        self._decode = decode
        self._midway = midway
        self._exit_now = exit_now
        self._found: dict[RequestId, frozenset[Fault]] = {}

    def run(self, plan: StepPlan) -> list[Sampled]:
        """Fail as the rows' prompts ask, or run the step."""
        asked = {row.request.id: self._faults_of(row) for row in plan.rows}
        _fail(frozenset().union(*asked.values()), self._exit_now)
        sampled = self._runner.run(plan)
        self._midway()
        return [_spoiled(one) if Fault.NAN in asked[one.request_id] else one for one in sampled]

    def check(self, request: EngineRequest) -> None:
        """Ask the runner."""
        self._runner.check(request)

    def forget(self, request_id: RequestId) -> None:
        """Drop whatever is kept for a request that has ended."""
        self._found.pop(request_id, None)
        self._runner.forget(request_id)

    def _faults_of(self, row: Row) -> frozenset[Fault]:
        request = row.request
        if request.id not in self._found:
            self._found[request.id] = _asked(self._marks, self._decode(request.prompt))
        return self._found[request.id]


class FaultyEncoder:
    """``encoder`` with faults, as ``FaultyRunner``; a fault strikes in each pass with an input that asks for it."""

    def __init__(
        self,
        encoder: Encoder,
        marks: Mapping[str, Fault],
        *,
        decode: Callable[[Sequence[int]], str],
        midway: Callable[[], None] = lambda: None,
        exit_now: Callable[[int], object] = os._exit,
    ) -> None:
        self.context_window = encoder.context_window
        self._encoder = encoder
        self._marks = marks
        self._decode = decode
        self._midway = midway
        self._exit_now = exit_now

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Fail as the inputs ask, or run the pass."""
        asked = [_asked(self._marks, self._decode(row.tokens)) for row in rows]
        _fail(frozenset().union(*asked), self._exit_now)
        vectors = self._encoder.run(rows)
        self._midway()
        return [None if Fault.NAN in faults else vector for vector, faults in zip(vectors, asked, strict=True)]


def _asked(marks: Mapping[str, Fault], text: str) -> frozenset[Fault]:
    return frozenset(fault for mark, fault in marks.items() if mark in text)


def _fail(faults: frozenset[Fault], exit_now: Callable[[int], object]) -> None:
    if Fault.EXIT in faults:
        exit_now(EXIT_CODE)
    if Fault.HANG in faults:
        threading.Event().wait()
    while Fault.SPIN in faults:
        pass
    if Fault.OOM in faults:
        raise MemoryError("a prompt asked for it")
    if Fault.RAISE in faults:
        raise RuntimeError("a prompt asked for it")


def _spoiled(sampled: Sampled) -> Sampled:
    return Sampled(sampled.request_id, None, finite=False)
