"""The engine's thread: decide, run, record, until it is stopped. It knows futures and callbacks, not tensors.

Other threads submit, cancel and read; one lock guards the schedule and is never held while the model runs or while
foreign code is called. Every request that was accepted gets exactly one outcome on its future:

    submit ──▶ inside ──▶ Completion          stop, length, cancelled, deadline, handed back
                  └─────▶ EngineError         not finite, step failed, engine stopped or its thread died
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf

from models.engine.engine_thread import Stepping
from models.engine.kv.block_pool import BlockPool
from models.engine.outbox import Outbox, call_out
from models.engine.passes import Pass, Passes, is_out_of_memory
from models.engine.requests import (
    BACKGROUND_RANK,
    MAX_TOP_LOGPROBS,
    Completion,
    Delta,
    EngineError,
    EngineRequest,
    EngineStats,
    EngineStopped,
    FinishReason,
    GrammarStuck,
    NumericalError,
    OutOfMemory,
    RequestInvalid,
    RequestTooLong,
    StepFailed,
)
from models.engine.runner import Interrupt, Runner, Sampled, StepPlan
from models.engine.scheduling.length_estimator import OutputLengths
from models.engine.scheduling.prefill_budget import Pacer
from models.engine.scheduling.scheduler import Scheduler
from models.engine.sequences.sequence import LiveRequest
from models.engine.sequences.stop_strings import Detokenizer
from models.engine.sequences.stream_throttle import Cadence
from models.engine.speculation.drafts import Speculation
from models.engine.statistics import Counts

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """At most ``max_slots`` requests run at the same time, and ``step_tokens`` tokens enter the model in one step.

    With ``speculation`` a step that has compute to spare checks guesses at the next tokens too. Prompts make the steps
    of running streams at most ``stretch`` times as long, as far as that can be foreseen. All requests together show
    new text about ``deltas_per_s`` times a second at most.
    """

    max_slots: int = 32
    step_tokens: int = 512
    speculation: bool = True
    stretch: float = 1.8
    deltas_per_s: float = inf

    def __post_init__(self) -> None:
        """Raise ValueError for a configuration in which nothing could run."""
        if self.max_slots < 1 or self.step_tokens < 1 or self.stretch <= 1 or self.deltas_per_s <= 0:
            raise ValueError(f"an engine needs slots, tokens, time for prompts beside streams, and to be heard: {self}")


class Engine(Stepping[tuple[LiveRequest, Future[Completion]]]):
    """Continuous batching over one runner.

    ``on_deltas`` gets all new texts of a step in one call, from the engine's thread and before the futures of the
    requests that end there; it must not block. (What was held back of a request that is cancelled or late comes in a
    call of its own, just before the step.) If it raises, that is logged and changes nothing.
    """

    def __init__(
        self,
        runner: Runner,
        detokenizer: Callable[[], Detokenizer],
        config: EngineConfig,
        *,
        on_deltas: Callable[[list[Delta]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(clock)
        self._runner = runner
        self._detokenizer = detokenizer
        self._config = config
        self._on_deltas = on_deltas
        self._pool = BlockPool(runner.num_blocks, runner.block_tokens)
        self._speculation = Speculation(runner.spare_tokens if config.speculation else 0)
        self._pacer = Pacer(config.stretch)
        self._cadence = Cadence(config.deltas_per_s)
        self._scheduler = Scheduler(
            self._pool,
            max_slots=config.max_slots,
            step_tokens=config.step_tokens,
            speculation=self._speculation,
            pacer=self._pacer,
        )
        self._passes = Passes(runner, self._count_pass)
        self._counts = Counts()
        self._to_forget: list[str] = []
        self._lengths = OutputLengths()
        # Of a step in which nobody is waited for; None in others.
        self._background: Interrupt | None = None

    def submit(self, request: EngineRequest) -> Future[Completion]:
        """Take a request in, and return the future of its outcome, which cannot be cancelled: use ``cancel``.

        Raises what ``check`` does, and EngineStopped when stopping.
        """
        live = self._live(request)
        future: Future[Completion] = Future()
        future.set_running_or_notify_cancel()
        with self._changed:
            self._enter(request.id, (live, future), live.submitted_at)
            self._scheduler.add(live)
            if self._background is not None and request.class_rank < BACKGROUND_RANK:
                self._background.set()
        return future

    @property
    def capacity_tokens(self) -> int:
        """The tokens, prompt and ``max_tokens`` together, of the longest request that ``submit`` takes."""
        return min(self._runner.context_window, self._pool.num_blocks * self._pool.block_tokens)

    def check(self, request: EngineRequest) -> None:
        """Raise RequestInvalid, RequestTooLong or CheckpointMismatch for a request that can never be computed."""
        self._live(request)

    def cancel(self, request_id: str, reason: FinishReason = FinishReason.CANCELLED) -> bool:
        """Let a request complete at the next step with what it has; False if it is not inside.

        It may still end by itself in the step under way, with a reason of its own. With HANDED_BACK no more of its
        text is shown, and its progress is for another attempt to go on from. The first reason stays: what its owner, or
        a policy, has ended is not for another attempt.
        """
        with self._changed:
            if request_id not in self._inside:
                return False
            live, _ = self._inside[request_id]
            live.ending = live.ending or reason
            return True

    def can_admit(self, num_prompt: int, max_tokens: int, *, count: int = 1) -> bool:
        """Return True if ``count`` requests find slots, and KV blocks that those inside are not expected to need.

        Each has ``num_prompt`` tokens and may generate ``max_tokens``; what is expected of it, and of those inside, is
        what outputs have been like. More than the pool can ever hold counts as the whole pool, so that ``submit`` gets
        to refuse it.
        """
        with self._changed:
            if not self._has_slots(count, self._config.max_slots):
                return False
            each = self._pool.blocks_for(num_prompt + self._lengths.remaining(0, max_tokens))
            growth = sum(self._expected_growth(live) for live, _ in self._inside.values())
            return growth + count * min(each, self._pool.num_blocks) <= self._pool.num_free

    def stats(self) -> EngineStats:
        """Return a reading of the counters."""
        with self._changed:
            running = len(self._scheduler.running)
            return self._counts.stats(
                running=running,
                waiting=len(self._inside) - running,
                blocks=(self._pool.num_free, self._pool.num_blocks),
                max_slots=self._config.max_slots,
                preempted=self._scheduler.num_preempted,
                cached_tokens=self._scheduler.num_found,
                evicted_blocks=self._pool.num_evicted,
                drafts=(self._speculation.num_drafted, self._speculation.num_accepted),
                step_age_s=self._step_age_s(),
            )

    def audit(self) -> None:
        """Raise AssertionError unless the KV pool's books match the requests that run. Slow; for tests and soaks."""
        with self._changed:
            self._pool.check([live.blocks for live in self._scheduler.running])

    def _live(self, request: EngineRequest) -> LiveRequest:
        self._check(request)
        return LiveRequest(request, self._detokenizer(), self._runner.eos_token_ids, self._clock())

    def _check(self, request: EngineRequest) -> None:
        if not request.prompt or request.sampling.max_tokens < 1 or "" in request.sampling.stop:
            raise RequestInvalid("a request needs a prompt, a token to generate, and no empty stop string")
        if not 0 <= (request.sampling.logprobs or 0) <= MAX_TOP_LOGPROBS:
            raise RequestInvalid(f"a request gets at most {MAX_TOP_LOGPROBS} alternatives a token")
        if request.pause_after is not None and request.pause_after < 1:
            raise RequestInvalid("a request is handed back after one token at the earliest")
        num_tokens = len(request.prompt) + request.sampling.max_tokens
        if num_tokens > self.capacity_tokens:
            raise RequestTooLong(
                f"{len(request.prompt)} prompt tokens and max_tokens {request.sampling.max_tokens} "
                f"are {num_tokens}, but at most {self.capacity_tokens} fit"
            )
        self._runner.check(request)

    def _expected_growth(self, live: LiveRequest) -> int:
        remaining = self._lengths.remaining(len(live.output), live.request.sampling.max_tokens)
        return max(0, self._pool.blocks_for(live.num_tokens + remaining) - len(live.blocks))

    def _step(self) -> None:
        plan = self._decide()
        if plan is not None:
            started_at = self._clock()
            passes = self._passes.run(plan)
            self._pace(passes, self._clock() - started_at)
            self._record(passes)

    def _pace(self, passes: Sequence[Pass], seconds: float) -> None:
        """Learn how long a step takes, unless it was none of the usual ones."""
        if len(passes) == 1 and passes[0].error is None:
            rows = passes[0].plan.rows
            num_prefill = sum(len(row.tokens) for row in rows if not row.is_decode)
            self._pacer.record(sum(row.is_decode for row in rows), num_prefill, seconds)
            if not num_prefill:
                self._speculation.costs.record(passes[0].plan.num_tokens, seconds)

    def _decide(self) -> StepPlan | None:
        """Let go whoever must end now, and plan the step of those who stay."""
        with self._telling() as outbox:
            now = self._clock()
            for live, _ in list(self._inside.values()):
                if live.forced_end(now) is not None:
                    self._advance(live, partial(live.forced_end, now), now, outbox)
            plan = self._scheduler.plan()
            for row in plan.rows if plan is not None else ():
                self._inside[row.request.id][0].start(now)
            self._background = None if plan is None else plan.interrupt
        return plan

    def _count_pass(self) -> None:
        """Note that a part of a step has ended, well or not: the engine is alive."""
        with self._changed:
            self._progress_at = self._clock()
            self._counts.count_pass()

    def _record(self, passes: list[Pass]) -> None:
        """Apply what the step gave, and tell everybody whom it concerns."""
        with self._telling() as outbox:
            if not self._inside:
                return  # a stop that did not wait for this step has told everybody
            now = self._clock()
            for one in passes:
                if one.error is None:
                    self._apply(one.plan, one.sampled, now, outbox)
                else:
                    self._fail_rows(one.plan, one.error, outbox)

    def _apply(self, plan: StepPlan, sampled: Sequence[Sampled], now: float, outbox: Outbox) -> None:
        self._counts.count_rows(plan)
        self._scheduler.record(plan, sampled)
        for one in sampled:
            live, _ = self._inside[one.request_id]
            num_before = len(live.output)
            if not one.finite:
                self._fail(live, NumericalError("the model's logits were not finite"), outbox)
            elif one.token is None:
                self._fail(live, GrammarStuck("no token could follow within the grammar"), outbox)
            else:
                self._advance(live, partial(live.take, one, now), now, outbox)
            self._counts.count_output(len(live.output) - num_before)

    def _advance(self, live: LiveRequest, move: Callable[[], FinishReason | None], now: float, outbox: Outbox) -> None:
        """Make a move of one request, and let it go if it ends there. A detokenizer that raises fails it alone."""
        try:
            reason = move()
            end = None if reason is None else live.close(reason)
        except Exception as error:
            log.exception("request_failed request_id=%s", live.id)
            self._fail(live, _caused_by(error, EngineError("the output could not be turned into text")), outbox)
            return
        if end is not None or self._cadence.is_due(live.shown_at, now, len(self._scheduler.running)):
            outbox.add(live.take_delta(now))
        if end is not None:
            outbox.completions.append((self._inside[live.id][1], live.completion(end, now)))
            if end in {FinishReason.STOP, FinishReason.LENGTH}:
                self._lengths.record(len(live.output))
            self._let_go(live)

    def _fail_rows(self, plan: StepPlan, cause: Exception, outbox: Outbox) -> None:
        """Fail those whom the step fails with, whoever else takes part in it."""
        log.error("step_failed rows=%d tokens=%d", len(plan.rows), plan.num_tokens, exc_info=cause)
        kind = OutOfMemory if is_out_of_memory(cause) else StepFailed
        for row in plan.rows:
            error = kind(f"the model's step failed ({type(cause).__name__}); the request may be tried again")
            self._fail(self._inside[row.request.id][0], _caused_by(cause, error), outbox)

    def _fail(self, live: LiveRequest, error: EngineError, outbox: Outbox) -> None:
        outbox.add(live.take_delta(self._clock()))  # the next attempt goes on after what was shown
        error.progress = live.progress
        outbox.failures.append((self._inside[live.id][1], error))
        self._let_go(live, is_sound=False)

    def _let_go(self, live: LiveRequest, *, is_sound: bool = True) -> None:
        """Take a request out whose outcome is in the outbox; its blocks are free at once."""
        del self._inside[live.id]
        self._scheduler.remove(live, is_sound=is_sound)
        self._to_forget.append(live.id)

    @contextmanager
    def _telling(self) -> Iterator[Outbox]:
        """Hold the lock, and tell what is in the outbox when it is released, even if the change fails midway."""
        outbox = Outbox()
        try:
            with self._changed:
                try:
                    yield outbox
                finally:
                    self._counts.count_outcomes(outbox)
        finally:
            self._forget_ended()
            outbox.deliver(self._on_deltas, self.on_credit)

    def _forget_ended(self) -> None:
        """Let the runner forget who has left, unless its thread is busy with it."""
        if self._thread is threading.current_thread() or not self._thread.is_alive():
            while self._to_forget:
                call_out("forget", partial(self._runner.forget, self._to_forget.pop()))

    def _close(self) -> None:
        """Take nobody any more, and fail everybody who is inside."""
        with self._telling() as outbox:
            self._stopping = True
            for live, future in self._inside.values():
                outbox.add(live.take_delta(self._clock()))
                error = EngineStopped("the engine stopped before the request ended")
                error.progress = live.progress
                outbox.failures.append((future, error))
                self._to_forget.append(live.id)
            self._inside.clear()
            self._scheduler.clear()


def _caused_by(cause: Exception, error: EngineError) -> EngineError:
    error.__cause__ = cause
    return error
