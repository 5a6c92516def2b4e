"""The engine for language models: schedule, run, postprocess, until it is stopped. Continuous batching on one runner.

    schedule      end cancelled and late requests, then let the scheduler plan the rows of a step
    run           compute the rows in one forward pass, or in more if a pass fails
    postprocess   give each request its tokens, show new text, complete the requests that end

It knows requests, futures and callbacks, not tensors. The thread, the lock and the futures are ``batching_engine``'s.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

from headrace.models.engine.batching_engine import Outbox, call_out, failure_of, ignore
from headrace.models.engine.block_manager import BlockPool
from headrace.models.engine.generation_engine import GenerationEngine
from headrace.models.engine.requests import (
    BACKGROUND_RANK,
    CompletionOutput,
    Delta,
    EngineRequest,
    EngineStats,
    GrammarStuck,
    NumericalError,
    RequestId,
)
from headrace.models.engine.runner import Interrupt, PassResult, Runner, Sampled, StepPlan, StepRunner
from headrace.models.engine.scheduling.scheduler import PrefillBudget, Scheduler
from headrace.models.engine.sequence import SequenceState
from headrace.models.engine.speculation import Speculation
from headrace.models.engine.stop_strings import TokenDecoder

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """At most ``max_slots`` requests run at the same time, and ``step_tokens`` tokens enter the model in one step.

    With ``speculation`` a step that has spare compute also verifies draft tokens. Prefill makes a step of running
    streams at most ``stretch`` times as long, as far as the engine can predict it. All requests together show new
    text at most about ``deltas_per_s`` times a second.
    """

    max_slots: int = 32
    step_tokens: int = 512
    speculation: bool = True
    stretch: float = 1.8
    deltas_per_s: float = inf

    def __post_init__(self) -> None:
        """Raise ValueError for a configuration in which nothing could run."""
        if self.max_slots < 1 or self.step_tokens < 1 or self.stretch <= 1 or self.deltas_per_s <= 0:
            raise ValueError(f"an engine needs max_slots, step_tokens and deltas_per_s > 0, stretch > 1: {self}")


class LLMEngine(GenerationEngine):
    """Generates text for many requests together.

    ``on_deltas`` gets all new texts of a step in one call. The last text of a request that is cancelled or late comes
    in a call of its own, just before the step.
    """

    def __init__(
        self,
        runner: Runner,
        detokenizer: Callable[[], TokenDecoder],
        config: EngineConfig,
        *,
        on_deltas: Callable[[list[Delta]], None],
        on_room: Callable[[], None] = ignore,
        on_failed: Callable[[BaseException], None] = ignore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            detokenizer,
            max_slots=config.max_slots,
            deltas_per_s=config.deltas_per_s,
            on_deltas=on_deltas,
            on_room=on_room,
            on_failed=on_failed,
            clock=clock,
        )
        self._runner = runner
        self._pool = BlockPool(runner.num_blocks, runner.block_tokens)
        self._speculation = Speculation(runner.spare_tokens if config.speculation else 0)
        self._prefill_budget = PrefillBudget(config.stretch)
        self._scheduler = Scheduler(
            self._pool,
            max_slots=config.max_slots,
            step_tokens=config.step_tokens,
            speculation=self._speculation,
            lookahead_tokens=runner.lookahead_tokens,
            prefill_budget=self._prefill_budget,
        )
        self._step_runner = StepRunner(runner, self._count_pass)
        self._to_forget: list[RequestId] = []  # the runner still keeps state for these
        self._interrupt: Interrupt | None = None  # of the current step, if it has background requests only

    @property
    def capacity_tokens(self) -> int:
        """Tokens of the longest request, prompt and ``max_tokens`` together."""
        return min(self._runner.context_window, self._pool.num_blocks * self._pool.block_tokens)

    @property
    def _num_running(self) -> int:
        return len(self._scheduler.running)

    def stats(self) -> EngineStats:
        """Return the current statistics."""
        with self._changed:
            running = len(self._scheduler.running)
            return self._counters.stats(
                running=running,
                waiting=len(self._active) - running,
                max_slots=self._max_slots,
                last_step_age_s=self._step_age_s(),
                free_blocks=self._pool.num_free,
                total_blocks=self._pool.num_blocks,
                preempted=self._scheduler.num_preempted,
                cached_tokens=self._scheduler.num_cached_prompt_tokens,
                evicted_blocks=self._pool.num_evicted,
                drafted_tokens=self._speculation.num_drafted,
                accepted_tokens=self._speculation.num_accepted,
            )

    def audit(self) -> None:
        """Raise AssertionError unless the KV pool matches the block tables of running requests. Slow; for tests."""
        with self._changed:
            self._pool.check([seq.blocks for seq in self._scheduler.running])

    def _step(self) -> None:
        plan = self._schedule()
        if plan is not None:
            self._postprocess(self._run(plan))

    def _schedule(self) -> StepPlan | None:
        """End the requests that must end now, and plan the step of the others."""
        with self._locked() as outbox:
            now = self._clock()
            self._end_forced(now, outbox)
            plan = self._scheduler.schedule()
            for row in plan.rows if plan is not None else ():
                self._active[row.request.id].start(now)
            self._interrupt = None if plan is None else plan.interrupt
        return plan

    def _run(self, plan: StepPlan) -> list[PassResult]:
        """Compute the step, and learn how long such a step takes."""
        started_at = self._clock()
        passes = self._step_runner.run(plan)
        seconds = self._clock() - started_at
        if len(passes) == 1 and passes[0].error is None:  # others are not typical
            rows = passes[0].plan.rows
            num_prefill = sum(len(row.tokens) for row in rows if not row.is_decode)
            self._prefill_budget.record(sum(row.is_decode for row in rows), num_prefill, seconds)
            if not num_prefill:
                self._speculation.costs.record(passes[0].plan.num_tokens, seconds)
        return passes

    def _postprocess(self, passes: list[PassResult]) -> None:
        """Give each request its tokens or its error."""
        with self._locked() as outbox:
            if not self._active:
                return  # a stop that did not wait for this step has failed all requests
            now = self._clock()
            for one in passes:
                if one.error is None:
                    self._apply(one.plan, one.sampled, now, outbox)
                else:
                    self._fail_rows(one.plan, one.error, outbox)

    def _apply(self, plan: StepPlan, sampled: Sequence[Sampled], now: float, outbox: Outbox[CompletionOutput]) -> None:
        self._counters.count_batch(len(plan.rows), sum(row.is_decode for row in plan.rows))
        self._counters.count_tokens(
            prompt=sum(len(row.request.prompt) for row in plan.rows if row.sample and not row.output)
        )
        self._scheduler.postprocess(plan, sampled)
        for one in sampled:
            seq = self._active[one.request_id]
            num_before = len(seq.output)
            if not one.finite:
                self._fail(seq, NumericalError(), outbox)
            elif one.token is None:
                self._fail(seq, GrammarStuck("no token could follow within the grammar"), outbox)
            else:
                self._advance(seq, partial(seq.take, one, now), now, outbox)
            self._counters.count_tokens(output=len(seq.output) - num_before)

    def _fail_rows(self, plan: StepPlan, cause: Exception, outbox: Outbox[CompletionOutput]) -> None:
        """Fail the requests of a pass that failed."""
        log.error("step_failed rows=%d tokens=%d", len(plan.rows), plan.num_tokens, exc_info=cause)
        for row in plan.rows:
            self._fail(self._active[row.request.id], failure_of(cause, "step"), outbox)

    def _count_pass(self) -> None:
        with self._changed:
            self._note_progress()
            self._counters.count_pass()

    def _new_state(self, request: EngineRequest) -> SequenceState:
        self._validate(request)
        self._runner.check(request)
        return SequenceState(request, self._detokenizer(), self._runner.eos_token_ids, self._clock())

    def _has_capacity(self, num_prompt: int, max_tokens: int, count: int, *, is_ahead: bool) -> bool:
        """Return True if the expected KV blocks of the new and of the active requests fit into the free ones.

        Expected output lengths come from recent outputs. A request larger than the pool counts as the whole pool, so
        that ``submit`` can refuse it.
        """
        each = self._pool.blocks_for(num_prompt + self._lengths.remaining(0, max_tokens))
        growth = sum(map(self._expected_growth, self._active.values()))
        return growth + count * min(each, self._pool.num_blocks) <= self._pool.num_free

    def _expected_growth(self, seq: SequenceState) -> int:
        remaining = self._lengths.remaining(len(seq.output), seq.request.sampling.max_tokens)
        return max(0, self._pool.blocks_for(seq.num_tokens + remaining) - len(seq.blocks))

    def _added(self, state: SequenceState) -> None:
        self._scheduler.add(state)
        if self._interrupt is not None and state.request.class_rank < BACKGROUND_RANK:
            self._interrupt.set()

    def _removed(self, state: SequenceState, *, is_sound: bool) -> None:
        self._scheduler.remove(state, is_sound=is_sound)
        self._to_forget.append(state.id)

    def _reset(self) -> None:
        self._to_forget += self._active
        self._scheduler.clear()

    def _unlocked(self) -> None:
        """Let the runner drop its state of ended requests, unless the engine's thread is running a step."""
        if self._thread is threading.current_thread() or not self._thread.is_alive():
            while self._to_forget:
                call_out("forget", partial(self._runner.forget, self._to_forget.pop()))
