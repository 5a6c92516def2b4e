"""The engine for encoders: schedule, run, postprocess. A request brings whole inputs, and each input gets one vector.

    schedule      end cancelled and late requests, choose the next inputs of the others, and pack them into passes
    run           compute a pass of similar lengths; a pass that raises is split in halves
    postprocess   give each request its vectors, complete the requests that have all of them

The first passes are those of the better and shorter requests. A pass takes about ``pass_s``, and after each pass the
plan is dropped if requests have come or ended: so a short request waits for one pass, not for a whole step.

The thread, the lock and the futures are ``batching_engine``'s. A request that fails does not fail its neighbours.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

from headrace.models.engine.batching_engine import BatchingEngine, failure_of, ignore
from headrace.models.engine.give_way import PATIENCE, give_way
from headrace.models.engine.requests import (
    EncodeOutput,
    EncodeRequest,
    EncodeRow,
    EngineError,
    EngineStats,
    FinishReason,
    NumericalError,
    RequestInvalid,
    RequestTooLong,
)
from headrace.models.engine.runner import MAX_PASSES, Encoder, RunnerBroken
from headrace.models.engine.scheduling.packing import PendingInputs, choose, in_order, pack
from headrace.models.engine.scheduling.pass_time import PassTime
from headrace.models.engine.sequence import ActiveRequest

log = logging.getLogger(__name__)

STEPS_AHEAD = 2
"""The engine takes at most the tokens of this many steps in advance; another worker can take the rest."""

Vector = bytes | Exception


@dataclass(frozen=True, slots=True)
class EncodeConfig:
    """At most ``max_slots`` requests are active; about ``step_tokens`` tokens are planned for a step.

    A pass of a step is planned to take ``pass_s`` seconds at most; infinite: as long as its tokens take.
    ``gives_way``: it is computed while no other thread wants the core.
    """

    max_slots: int = 32
    step_tokens: int = 4096
    pass_s: float = inf
    gives_way: bool = False


class EncodeState(ActiveRequest):
    """An active request: its vectors so far, and the indices of the inputs without one, the longest first."""

    def __init__(self, request: EncodeRequest, now: float) -> None:
        super().__init__(now)
        self.request: EncodeRequest = request
        self.num_tokens = 0
        self.vectors: list[bytes] = [b""] * len(request.inputs)
        self.pending = sorted(range(len(request.inputs)), key=lambda index: -len(request.inputs[index]))

    def pending_inputs(self) -> PendingInputs:
        """Return the inputs that are still to compute, as ``packing`` takes them."""
        lengths = [len(self.request.inputs[index]) for index in self.pending]
        return PendingInputs(lengths, self.num_tokens, self.request.class_rank)

    def row(self, index: int, is_wanted: Callable[[], bool]) -> EncodeRow:
        """Return an input as the encoder takes it."""
        return EncodeRow(self.request.id, self.request.inputs[index], self.request.options, index, is_wanted)

    def result(self, reason: FinishReason, now: float) -> EncodeOutput:
        """Return the result of a request that ends."""
        vectors = tuple(self.vectors) if reason is FinishReason.STOP else ()
        return EncodeOutput(self.request.id, vectors, reason, self.num_tokens, now - self.submitted_at)


Inputs = list[tuple[EncodeState, int]]
"""Inputs of a pass: each with its request and its index there."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The passes of a step in their order. ``oldest`` is the request that must get on before the plan is dropped."""

    passes: Sequence[Inputs]
    oldest: EncodeState


class EncodeEngine(BatchingEngine[EncodeRequest, EncodeOutput, EncodeState]):
    """Batches the inputs of many requests on one encoder."""

    def __init__(
        self,
        encoder: Encoder,
        config: EncodeConfig,
        *,
        on_room: Callable[[], None] = ignore,
        on_failed: Callable[[BaseException], None] = ignore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            max_slots=config.max_slots, on_deltas=ignore, on_room=on_room, on_failed=on_failed, clock=clock
        )
        self._encoder = encoder
        self._config = config
        self._pass_time = PassTime(config.pass_s)
        self._has_new = False

    @property
    def capacity_tokens(self) -> None:
        """None: only the context window limits the length of an input."""

    def is_healthy(self, max_step_s: float) -> bool:
        """As ``Engine.is_healthy``. A pass that gives way takes as long as the other threads let it."""
        return super().is_healthy(max_step_s * (PATIENCE if self._config.gives_way else 1))

    def stats(self) -> EngineStats:
        """Return the current statistics; KV blocks, output tokens and drafts are 0."""
        with self._changed:
            running = sum(state.num_tokens > 0 for state in self._active.values())
            return self._stats_without_cache(running)

    def _enter_thread(self) -> None:
        if self._config.gives_way:
            give_way()

    def _step(self) -> None:
        plan = self._schedule()
        if plan is None:
            return
        served = plan.oldest.num_tokens
        for inputs in plan.passes:
            is_sound = self._postprocess(inputs, self._run([self._row(*one) for one in inputs]))
            if not is_sound or (plan.oldest.num_tokens > served and self._is_outdated()):
                return

    def _row(self, state: EncodeState, index: int) -> EncodeRow:
        return state.row(index, partial(self._is_wanted, state))

    def _is_wanted(self, state: EncodeState) -> bool:
        """Note that a pass goes on; return False if the request need not get its vectors any more."""
        with self._changed:
            self._note_progress()
            return state.id in self._active and not self._stopping and state.forced_end(self._clock()) is None

    def _is_outdated(self) -> bool:
        """True if requests have come, or must end, since the plan was made."""
        now = self._clock()
        with self._changed:
            return self._has_new or any(state.forced_end(now) is not None for state in self._active.values())

    def _added(self, state: EncodeState) -> None:
        self._has_new = True

    def _schedule(self) -> Plan | None:
        """End the requests that must end now, and plan the next step; None if no request is left."""
        now = self._clock()
        with self._locked() as outbox:
            for state in list(self._active.values()):
                reason = state.forced_end(now)
                if reason is not None:
                    self._complete(state, state.result(reason, now), outbox)
            active = list(self._active.values())
            self._has_new = False
        if not active:
            return None
        counts = choose([state.pending_inputs() for state in active], self._config.step_tokens)
        chosen = [(state, index) for state, num in zip(active, counts, strict=True) for index in state.pending[:num]]
        lengths = [len(state.request.inputs[index]) for state, index in chosen]
        passes = pack(lengths, self._pass_time.budget(self._config.step_tokens))
        left = {state.id: state.request.num_tokens - state.num_tokens for state in active}
        ranks = [(state.request.class_rank, left[state.id]) for state, _ in chosen]
        return Plan([[chosen[at] for at in one] for one in in_order(passes, ranks)], active[0])

    def _run(self, rows: Sequence[EncodeRow]) -> list[Vector]:
        """Return for each row of a pass its vector or its error. Raises RunnerBroken."""
        found: list[Vector] = [b""] * len(rows)
        waiting = deque([list(range(len(rows)))])
        num_passes = 0
        while waiting:
            batch = waiting.popleft()
            vectors = self._run_pass([rows[index] for index in batch])
            num_passes += 1
            if not isinstance(vectors, Exception):
                for index, vector in zip(batch, vectors, strict=True):
                    found[index] = vector or NumericalError()
            elif len(batch) == 1 or num_passes > MAX_PASSES:
                for index in batch:
                    found[index] = vectors
            else:
                log.warning("pass_split rows=%d error=%s", len(batch), type(vectors).__name__)
                half = len(batch) // 2
                waiting.extendleft((batch[half:], batch[:half]))
        return found

    def _run_pass(self, rows: Sequence[EncodeRow]) -> Sequence[bytes | Exception | None] | Exception:
        began_at = self._clock()
        lengths = [len(row.tokens) for row in rows]
        num_computed = max(lengths) * len(rows)
        try:
            vectors = self._encoder.run(rows)
            if len(vectors) != len(rows):
                raise ValueError("the encoder's vectors do not match the rows")
        except RunnerBroken:
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes the outcome of the rows that caused it
            return error
        finally:
            with self._changed:
                self._note_progress()
                self._counters.count_pass()
                self._counters.count_batch(len(rows), len(rows), num_computed - sum(lengths))
        self._pass_time.record(num_computed, self._clock() - began_at)
        return vectors

    def _postprocess(self, inputs: Inputs, vectors: Sequence[Vector]) -> bool:
        """Give each request its vectors, and complete or fail the requests that end. Return whether none has failed."""
        now = self._clock()
        is_sound = True
        with self._locked() as outbox:
            for (state, index), vector in zip(inputs, vectors, strict=True):
                if state.id not in self._active:
                    continue  # an earlier input has failed it, or a stop that did not wait for this step
                if isinstance(vector, Exception) and state.forced_end(now) is not None:
                    is_sound = False  # the next step ends it, whatever the pass made of it
                    continue
                if isinstance(vector, Exception):
                    error = vector if isinstance(vector, EngineError) else failure_of(vector, "pass")
                    self._fail(state, error, outbox)
                    is_sound = False
                    continue
                state.vectors[index] = vector
                state.pending.remove(index)
                num_tokens = len(state.request.inputs[index])
                state.num_tokens += num_tokens
                self._counters.count_tokens(prompt=num_tokens)
                if not state.pending:
                    self._complete(state, state.result(FinishReason.STOP, now), outbox)
            return is_sound and not self._stopping

    def _new_state(self, request: EncodeRequest) -> EncodeState:
        if not request.inputs or not all(request.inputs):
            raise RequestInvalid("a request needs an input, and each input a token")
        longest = max(map(len, request.inputs))
        if longest > self._encoder.context_window:
            raise RequestTooLong(f"an input has {longest} tokens, but at most {self._encoder.context_window} fit")
        return EncodeState(request, self._clock())

    def _has_capacity(self, num_prompt: int, _max_tokens: int, count: int, *, is_ahead: bool) -> bool:
        if is_ahead:
            return True  # a slot is enough: the steps give it its turn, however much the others have left
        pending = sum(state.request.num_tokens - state.num_tokens for state in self._active.values())
        return pending + (count - 1) * num_prompt < STEPS_AHEAD * self._config.step_tokens
