"""Runs a step in as few forward passes as possible, and finds the row with which a pass fails, by bisection.

    8 rows ╳ ──▶ 4 ✓
             └─▶ 4 ╳ ──▶ 2 ╳ ──▶ 1 ✓
                     │       └─▶ 1 ╳   the culprit, which fails alone
                     └─▶ 2 ✓

After an out-of-memory error later steps are cut into smaller passes for a while.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from headrace.models.engine.runner import Interrupted, Runner, RunnerBroken, Sampled, StepPlan

log = logging.getLogger(__name__)

MAX_PASSES = 64
"""After this many passes in one step nothing is split any more: nearly all rows fail."""

CALM_STEPS = 64
"""Steps without an out-of-memory error after which passes may have twice as many rows."""


@dataclass(frozen=True, slots=True)
class PassResult:
    """A part of a step and its result: one Sampled for each row that asked for one, or the error of the pass."""

    plan: StepPlan
    sampled: tuple[Sampled, ...] = ()
    error: Exception | None = None


class StepRunner:
    """Runs steps on a runner. ``on_pass`` is called after each pass, failed ones too. Raises RunnerBroken only."""

    def __init__(self, runner: Runner, on_pass: Callable[[], None]) -> None:
        self._runner = runner
        self._on_pass = on_pass
        self._max_rows: int | None = None
        self._num_calm = 0

    def run(self, plan: StepPlan) -> list[PassResult]:
        """Return the passes that together are the step, in the order of its rows. Only culprits have an error.

        If the step is interrupted, only the passes that ended before are returned. Their rows have taken effect.
        """
        todo = deque(_split(plan, self._max_rows or len(plan.rows)))
        done: list[PassResult] = []
        too_many: list[int] = []
        num_passes = 0
        while todo:
            try:
                result = self._run_pass(todo.popleft())
            except Interrupted:
                break
            num_passes += 1
            num_rows = len(result.plan.rows)
            if result.error is None or num_rows == 1 or num_passes >= MAX_PASSES:
                done.append(result)
                continue
            log.warning("step_split rows=%d error=%s", num_rows, type(result.error).__name__)
            if is_out_of_memory(result.error):
                too_many.append(num_rows)
            todo.extendleft(reversed(_split(result.plan, -(-num_rows // 2))))
        # If a row fails alone, that row is the cause, not the number of rows.
        self._adapt(None if any(one.error is not None for one in done) else min(too_many, default=None))
        return done

    def _run_pass(self, plan: StepPlan) -> PassResult:
        try:
            sampled = tuple(self._runner.run(plan))
            broken = {one.request_id for one in sampled if not one.finite}
            expected = [row.request.id for row in plan.rows if row.sample or row.request.id in broken]
            if [one.request_id for one in sampled] != expected:
                raise ValueError("the runner's tokens do not match the rows of the plan")
        except (RunnerBroken, Interrupted):
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes the outcome of the rows that caused it
            return PassResult(plan, error=error)
        finally:
            self._on_pass()
        return PassResult(plan, sampled)

    def _adapt(self, too_many: int | None) -> None:
        """Adapt the size of passes. ``too_many``: the smallest number of rows that ran out of memory, None if none."""
        if too_many is not None:
            self._max_rows, self._num_calm = max(1, too_many // 2), 0
            log.warning("out_of_memory rows=%d rows_from_now=%d", too_many, self._max_rows)
        elif self._max_rows is not None:
            self._num_calm += 1
            if self._num_calm >= CALM_STEPS:
                self._max_rows, self._num_calm = self._max_rows * 2, 0


def _split(plan: StepPlan, max_rows: int) -> list[StepPlan]:
    """Split a plan into parts of at most ``max_rows`` rows, in the plan's order."""
    rows = plan.rows
    return [StepPlan(rows[first : first + max_rows], plan.interrupt) for first in range(0, len(rows), max_rows)]


def is_out_of_memory(error: Exception) -> bool:
    """Return True for an out-of-memory error. Torch's is found by its name, because the engine imports no torch."""
    return isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
