"""A runner that fails where a prompt asks for it: what a device, a driver or a bad weight does, when a test wants it.

Wraps any ``Runner``. A fault strikes in each step that a request takes part in whose prompt contains the fault's mark,
so it follows the request from worker to worker, as a poison job does. Never there unless a test's settings ask for it.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from models.engine.requests import EngineRequest
from models.engine.runner import Row, Runner, Sampled, StepPlan

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
        self._found: dict[str, frozenset[Fault]] = {}

    def run(self, plan: StepPlan) -> list[Sampled]:
        """Fail as the rows' prompts ask, or run the step."""
        asked = {row.request.id: self._faults_of(row) for row in plan.rows}
        self._fail(frozenset().union(*asked.values()))
        sampled = self._runner.run(plan)
        self._midway()
        return [_spoiled(one) if Fault.NAN in asked[one.request_id] else one for one in sampled]

    def check(self, request: EngineRequest) -> None:
        """Ask the runner."""
        self._runner.check(request)

    def forget(self, request_id: str) -> None:
        """Drop whatever is kept for a request that has ended."""
        self._found.pop(request_id, None)
        self._runner.forget(request_id)

    def _faults_of(self, row: Row) -> frozenset[Fault]:
        request = row.request
        if request.id not in self._found:
            prompt = self._decode(request.prompt)
            self._found[request.id] = frozenset(fault for mark, fault in self._marks.items() if mark in prompt)
        return self._found[request.id]

    def _fail(self, faults: frozenset[Fault]) -> None:
        if Fault.EXIT in faults:
            self._exit_now(EXIT_CODE)
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
