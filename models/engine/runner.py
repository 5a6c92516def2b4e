"""The interface between the engine and a model runner: one plan per step in, one token per sampled row out.

A runner owns the weights and the KV tensors, and knows nothing of the schedule. It may keep sampling state of requests
(random generator, token counts for penalties) between calls of ``run``; ``forget`` drops it.

``StepRunner`` runs a step in as few passes as possible, and finds the row with which a pass fails, by bisection.

    8 rows ╳ ──▶ 4 ✓
             └─▶ 4 ╳ ──▶ 2 ╳ ──▶ 1 ✓
                     │       └─▶ 1 ╳   the culprit, which fails alone
                     └─▶ 2 ✓

After an out-of-memory error later steps are cut into smaller passes for a while.
"""

import logging
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from headrace.models.engine.requests import EncodeRow, EngineRequest, RequestId, SampledLogprobs


@dataclass(frozen=True, slots=True)
class Row:
    """One request's part of a step: ``tokens`` enter the cache at positions ``start``, ``start + 1``, …

    ``blocks`` is the request's whole block table: position p is in block ``blocks[p // block_tokens]`` at offset
    ``p % block_tokens``, and it covers ``start + len(tokens)``. Blocks that end at or before ``start`` may be shared
    with other requests and are only read. A decode row has one token; a prefill chunk has one or more. ``sample`` is
    True if the last of ``tokens`` is the newest of the request: its logits choose the next token. ``output`` are the
    tokens generated so far, for penalties and for the seeded draw (its n-th number depends on seed and n alone).

    A decode row may have ``drafts`` after its one token: the last of ``tokens`` are then draft tokens to verify. Keys
    and values at the positions of rejected drafts are overwritten later. With ``scores_prompt`` the logprobs of the
    prompt's tokens are asked for: ``start`` of the first such row is 0, and the last one samples.
    """

    request: EngineRequest
    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    output: Sequence[int]
    sample: bool
    drafts: Sequence[int] = ()
    scores_prompt: bool = False

    @property
    def is_decode(self) -> bool:
        """True if only the newest generated token enters."""
        return bool(self.output) and self.start == len(self.request.prompt) + len(self.output) - 1


class Interrupt:
    """A flag that any thread may set to end the current step early; a runner may check it during a pass."""

    def __init__(self) -> None:
        self._flag = array("i", [0])

    def set(self) -> None:
        """Request the end of the step."""
        self._flag[0] = 1

    @property
    def is_set(self) -> bool:
        """True after ``set``."""
        return bool(self._flag[0])

    @property
    def address(self) -> int:
        """The address of the flag, a C int, for native code."""
        return self._flag.buffer_info()[0]


class Interrupted(Exception):
    """Raised by ``run`` instead of a result when the plan's flag was set: no request got a token."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The rows of one step: decode rows first, then prefill chunks. ``interrupt`` may end it early."""

    rows: tuple[Row, ...]
    interrupt: Interrupt | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that enter the model in this step."""
        return sum(len(row.tokens) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The next token of one request, after the ``accepted`` drafts of its row.

    The token is None with ``finite`` False if the logits were NaN or infinite; it is None with ``finite`` True if no
    token can follow within the request's grammar. ``logprobs`` has one for each of ``tokens`` if the request asks.
    ``prompt_logprobs`` has one for each of the prompt's tokens after the first if the row asks.
    """

    request_id: RequestId
    token: int | None
    finite: bool = True
    accepted: tuple[int, ...] = ()
    logprobs: tuple[SampledLogprobs, ...] = ()
    prompt_logprobs: tuple[SampledLogprobs, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        """All new tokens of the request, in order."""
        return self.accepted if self.token is None else (*self.accepted, self.token)


class Runner(Protocol):
    """Computes one step. Only the engine's thread calls it, one call at a time."""

    context_window: int
    eos_token_ids: frozenset[int]
    num_blocks: int
    block_tokens: int
    spare_tokens: int  # tokens that a decode pass can take at hardly more than the cost of one; 0: no speculation
    lookahead_tokens: (
        int  # positions after its newest token for which a decode row should have blocks, if some are free
    )
    default_settings: Mapping[str, int]  # values for settings of the worker that are not set

    def run(self, plan: StepPlan) -> list[Sampled]:
        """Write the rows' keys and values, and return one Sampled for each row with ``sample``, in plan order.

        A row with logits that are not finite always has one. The engine does not share the blocks of such a row; the
        runner must clear them if their contents could affect the next owner. If ``run`` raises, it has written only at
        the positions of the plan's tokens, so any part of the plan may run again. It may raise Interrupted after the
        plan's flag was set, but need not check the flag.
        """
        ...

    def check(self, request: EngineRequest) -> None:
        """Raise RequestInvalid for a request that this runner cannot compute. May be called from any thread."""
        ...

    def forget(self, request_id: RequestId) -> None:
        """Drop the state of a request that has ended; it may have ended before it ran."""
        ...


class Encoder(Protocol):
    """Turns whole sequences into vectors. Only the engine's thread calls ``run``, one call at a time."""

    context_window: int

    def run(self, rows: Sequence[EncodeRow]) -> Sequence[bytes | Exception | None]:
        """Return each row's vector as little-endian float32, None if its numbers are not finite.

        Only the task knows what the bytes mean. An exception fails the request of its row alone. The longest row comes
        first. The other rows of a batch change a vector only by rounding.
        """
        ...


class RunnerBroken(Exception):
    """Raised by ``run`` when no later step can succeed, as after a lost device: the engine ends."""


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
