"""Fault injection: a runner that fails if a prompt contains a mark, as a device, a driver or a bad weight may fail.

Wraps any ``Runner`` or ``Encoder``. The fault happens in each step with a request that has the mark in its prompt. So
it follows the request from worker to worker, as a poison job does. Active only if the settings of a test enable it.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from headrace.models.engine.requests import EncodeRow, EngineRequest, RequestId
from headrace.models.engine.runner import Encoder, Row, Runner, Sampled, StepPlan

EXIT_CODE = 86


class Fault(StrEnum):
    """The effect of a marked prompt on its step. ``NAN`` affects only its own row."""

    EXIT = "exit"  # the process exits without a message
    RAISE = "raise"
    OOM = "oom"
    NAN = "nan"
    HANG = "hang"  # waits forever
    SPIN = "spin"  # computes forever


class FaultyRunner:
    """``runner`` with faults. ``marks`` maps the text of a mark to its fault. ``decode`` turns a prompt into text.

    ``midway`` is called in each step, after it is computed and before its result is returned.
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
        self.lookahead_tokens = runner.lookahead_tokens
        self.default_settings = runner.default_settings
        self._runner = runner
        self._marks = marks
        self._decode = decode
        self._midway = midway
        self._exit_now = exit_now
        self._found: dict[RequestId, frozenset[Fault]] = {}

    def run(self, plan: StepPlan) -> list[Sampled]:
        """Run the step, or fail as the prompts of its rows request."""
        requested = {row.request.id: self._faults_of(row) for row in plan.rows}
        _fail(frozenset().union(*requested.values()), self._exit_now)
        sampled = self._runner.run(plan)
        self._midway()
        return [_with_nan(one) if Fault.NAN in requested[one.request_id] else one for one in sampled]

    def check(self, request: EngineRequest) -> None:
        """Check the request with the wrapped runner."""
        self._runner.check(request)

    def forget(self, request_id: RequestId) -> None:
        """Drop the state of a request that has ended."""
        self._found.pop(request_id, None)
        self._runner.forget(request_id)

    def _faults_of(self, row: Row) -> frozenset[Fault]:
        request = row.request
        if request.id not in self._found:
            self._found[request.id] = _requested_faults(self._marks, self._decode(request.prompt))
        return self._found[request.id]


class FaultyEncoder:
    """``encoder`` with faults, as ``FaultyRunner``. A fault happens in each pass with an input that has its mark."""

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

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | Exception | None]:
        """Run the pass, or fail as its inputs request."""
        requested = [_requested_faults(self._marks, self._decode(row.tokens)) for row in rows]
        _fail(frozenset().union(*requested), self._exit_now)
        vectors = self._encoder.run(rows)
        self._midway()
        return [None if Fault.NAN in faults else vector for vector, faults in zip(vectors, requested, strict=True)]


def _requested_faults(marks: Mapping[str, Fault], text: str) -> frozenset[Fault]:
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


def _with_nan(sampled: Sampled) -> Sampled:
    return Sampled(sampled.request_id, None, finite=False)
