"""Computes a step in as few passes as go well, and finds out which row a pass fails with.

    8 rows ╳ ──▶ 4 ✓
             └─▶ 4 ╳ ──▶ 2 ╳ ──▶ 1 ✓
                     │       └─▶ 1 ╳   the culprit, which fails alone
                     └─▶ 2 ✓

A pass that lacked memory is a hint that fewer rows fit: later steps are cut into smaller passes for a while. It knows
plans and the runner, nothing of a request's life.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from models.engine.runner import Interrupted, Runner, RunnerBroken, Sampled, StepPlan

log = logging.getLogger(__name__)

MAX_PASSES = 64
"""So many passes into one step nothing is split any more: the device fails with everybody, or nearly so."""

CALM_STEPS = 64
"""Steps without want of memory after which passes may have twice as many rows."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A part of a step and what it gave: a token for each row that asked for one, or the error it failed with."""

    plan: StepPlan
    sampled: tuple[Sampled, ...] = ()
    error: Exception | None = None


class Passes:
    """Runs steps. ``on_pass`` is called when a pass has ended, well or not. Raises RunnerBroken only."""

    def __init__(self, runner: Runner, on_pass: Callable[[], None]) -> None:
        self._runner = runner
        self._on_pass = on_pass
        self._max_rows: int | None = None
        self._num_calm = 0

    def run(self, plan: StepPlan) -> list[Pass]:
        """Return the passes that together are the step, in the order of its rows. Only the culprits' have failed.

        If the step is interrupted, those that had ended before; what they gave must not be asked for twice.
        """
        todo = deque(_cut(plan, self._max_rows or len(plan.rows)))
        done: list[Pass] = []
        too_many: list[int] = []
        num_passes = 0
        while todo:
            try:
                ran = self._pass(todo.popleft())
            except Interrupted:
                break
            num_passes += 1
            num_rows = len(ran.plan.rows)
            if ran.error is None or num_rows == 1 or num_passes >= MAX_PASSES:
                done.append(ran)
                continue
            log.warning("step_split rows=%d error=%s", num_rows, type(ran.error).__name__)
            if is_out_of_memory(ran.error):
                too_many.append(num_rows)
            todo.extendleft(reversed(_cut(ran.plan, -(-num_rows // 2))))
        # A row that fails alone was to blame itself, whatever it took along.
        self._learn(None if any(ran.error is not None for ran in done) else min(too_many, default=None))
        return done

    def _pass(self, plan: StepPlan) -> Pass:
        try:
            sampled = tuple(self._runner.run(plan))
            broken = {one.request_id for one in sampled if not one.finite}
            told = [row.request.id for row in plan.rows if row.sample or row.request.id in broken]
            if [one.request_id for one in sampled] != told:
                raise ValueError("the runner's tokens do not match the rows of the plan")
        except (RunnerBroken, Interrupted):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the rows, whose requests are told
            return Pass(plan, error=error)
        finally:
            self._on_pass()
        return Pass(plan, sampled)

    def _learn(self, too_many: int | None) -> None:
        """Note the smallest number of rows for which there was no memory, None if there was for all."""
        if too_many is not None:
            self._max_rows, self._num_calm = max(1, too_many // 2), 0
            log.warning("out_of_memory rows=%d rows_from_now=%d", too_many, self._max_rows)
        elif self._max_rows is not None:
            self._num_calm += 1
            if self._num_calm >= CALM_STEPS:
                self._max_rows, self._num_calm = self._max_rows * 2, 0


def _cut(plan: StepPlan, max_rows: int) -> list[StepPlan]:
    """Cut a plan into parts of at most ``max_rows``; their order, decode rows first, is the plan's."""
    rows = plan.rows
    return [StepPlan(rows[first : first + max_rows], plan.interrupt) for first in range(0, len(rows), max_rows)]


def is_out_of_memory(error: Exception) -> bool:
    """Torch's error is known by its name, for the engine knows no torch."""
    return isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
