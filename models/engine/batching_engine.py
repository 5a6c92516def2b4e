"""The shell that the engines share: one thread that takes steps, one lock, one future for each request.

    submit ──▶ active ──▶ result              stop, length, cancelled, deadline, handed back
                  └─────▶ EngineError         numerical error, step failed, engine stopped or its thread died

A subclass defines a step: schedule, run, postprocess.

Rules: the lock is never held while the model runs or foreign code is called. Every accepted request gets exactly one
outcome. If the thread dies, every active request fails with EngineStopped. Deltas and outcomes are collected in an
``Outbox`` while the lock is held, and delivered after its release.
"""

import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

from headrace.models.engine.requests import (
    Delta,
    EncodeRequest,
    EngineError,
    EngineRequest,
    EngineStats,
    EngineStopped,
    FinishReason,
    OutOfMemory,
    RequestId,
    RequestInvalid,
    StepFailed,
)
from headrace.models.engine.runner import is_out_of_memory
from headrace.models.engine.sequence import ActiveRequest

log = logging.getLogger(__name__)

NUM_RECENT_BATCHES = 128

RequestT = TypeVar("RequestT", bound=EngineRequest | EncodeRequest)
ResultT = TypeVar("ResultT")
StateT = TypeVar("StateT", bound=ActiveRequest)


def ignore(*_: object) -> None:
    """A callback that does nothing."""


class Outbox(Generic[ResultT]):
    """The deltas and outcomes of a step, or of a stop.

    Invariant: the deltas of a request are delivered before its outcome, and an outcome is delivered once.
    """

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.completions: list[tuple[Future[ResultT], ResultT]] = []
        self.failures: list[tuple[Future[ResultT], EngineError]] = []

    def add(self, delta: Delta | None) -> None:
        """Add the new text of a request, if there is any."""
        if delta is not None:
            self.deltas.append(delta)

    def deliver(self, on_deltas: Callable[[list[Delta]], None], on_room: Callable[[], None]) -> None:
        """Deliver the deltas in one call, then the outcomes; then call ``on_room`` if requests have ended."""
        if self.deltas:
            call_out("on_deltas", partial(on_deltas, self.deltas))
        for future, result in self.completions:
            call_out("on_done", partial(future.set_result, result))
        for failed, error in self.failures:
            call_out("on_done", partial(failed.set_exception, error))
        if self.completions or self.failures:
            call_out("on_room", on_room)


def call_out(name: str, callback: Callable[[], object]) -> None:
    """Call foreign code. Its error is logged: it must not end the engine or keep the next callback from its call."""
    try:
        callback()
    except BaseException:  # SystemExit too: in this thread it would end the engine alone
        log.exception("callback_failed name=%s", name)


class EngineCounters:
    """Counts of steps, tokens and outcomes since the engine's start, and how well the batches were filled.

    The engine's thread writes them; they are read under its lock.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._batches = 0
        self._steady_rows = 0
        self._batch_rows = 0
        self._padding_tokens = 0
        self._peak_batch = 0
        self._recent: deque[int] = deque(maxlen=NUM_RECENT_BATCHES)
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._completed = 0
        self._failed = 0

    def count_pass(self) -> None:
        """Count a forward pass that ended, well or not."""
        self._steps += 1

    def count_batch(self, num_rows: int, num_steady_rows: int, num_padding: int = 0) -> None:
        """Count the rows of a pass. ``num_steady_rows``, those without prefill chunks, make the mean batch.

        ``num_padding``: the computed positions without a token.
        """
        self._batches += num_steady_rows > 0
        self._steady_rows += num_steady_rows
        self._batch_rows += num_rows
        self._padding_tokens += num_padding
        self._peak_batch = max(self._peak_batch, num_rows)
        self._recent.append(num_rows)

    def count_tokens(self, *, prompt: int = 0, output: int = 0) -> None:
        """Count tokens of prompts that were taken in, and tokens that were generated."""
        self._prompt_tokens += prompt
        self._output_tokens += output

    def count_outcomes(self, completed: int, failed: int) -> None:
        """Count requests that ended."""
        self._completed += completed
        self._failed += failed

    def stats(
        self, *, running: int, waiting: int, max_slots: int, last_step_age_s: float, **others: Any
    ) -> EngineStats:
        """Return the statistics; ``others`` are the fields of EngineStats that are not counted here."""
        return EngineStats(
            steps=self._steps,
            running=running,
            waiting=waiting,
            max_slots=max_slots,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            completed=self._completed,
            failed=self._failed,
            batch_rows=self._batch_rows,
            padding_tokens=self._padding_tokens,
            mean_batch=self._steady_rows / self._batches if self._batches else 0.0,
            peak_batch=self._peak_batch,
            last_step_age_s=last_step_age_s,
            recent_batches=tuple(self._recent),
            **others,
        )


class BatchingEngine(ABC, Generic[RequestT, ResultT, StateT]):
    """Implements ``models.engine.protocol.Engine``. ``StateT`` is the state of an active request."""

    def __init__(
        self,
        *,
        max_slots: int,
        on_deltas: Callable[[list[Delta]], None],
        on_room: Callable[[], None],
        on_failed: Callable[[BaseException], None],
        clock: Callable[[], float],
    ) -> None:
        self.on_deltas = on_deltas
        self.on_room = on_room
        self.on_failed = on_failed
        self._max_slots = max_slots
        self._clock = clock
        self._changed = threading.Condition()
        self._active: dict[RequestId, StateT] = {}
        self._futures: dict[RequestId, Future[ResultT]] = {}
        self._counters = EngineCounters()
        self._progress_at = clock()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    @property
    def why_not(self) -> str | None:
        """Why no requests are admitted at the moment; None: an engine of this process has no such reason."""
        return None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def step(self) -> None:
        """Take one step on the calling thread, for a program with a clock of its own: the thread is not started."""
        if self._active:
            self._step()

    def submit(self, request: RequestT) -> Future[ResultT]:
        """Take a request and return the future of its outcome. The future cannot be cancelled: use ``cancel``.

        Raises what ``check`` raises, and EngineStopped when the engine is stopping.
        """
        state = self._new_state(request)
        future: Future[ResultT] = Future()
        future.set_running_or_notify_cancel()
        with self._changed:
            self._add(state, future)
        return future

    def check(self, request: RequestT) -> None:
        """Raise RequestInvalid, RequestTooLong or CheckpointMismatch for a request that can never be computed."""
        self._new_state(request)

    def cancel(self, request_id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> bool:
        """End a request, or a group of them, before the next step, with the results that it has by then.

        Returns False if it is not active.
        It may still end by itself in the current step, with a reason of its own. With HANDED_BACK no more of its text
        is shown, and another attempt continues from its progress. The first reason stays: a request that its owner or
        a policy has cancelled is not continued.
        """
        with self._changed:
            state = self._active.get(request_id)
            states = [one for one in self._active.values() if one.group == request_id] if state is None else [state]
            for one in states:
                one.ending = one.ending or reason
            return bool(states)

    def can_admit(self, num_prompt: int, max_tokens: int, *, count: int = 1, is_ahead: bool = False) -> bool:
        """Return True if there are slots, and memory or compute, for ``count`` more requests.

        Each has ``num_prompt`` prompt tokens and generates at most ``max_tokens``. ``is_ahead``: of the fast lane.
        """
        with self._changed:
            if self._stopping or len(self._active) + count > self._max_slots:
                return False
            return self._has_capacity(num_prompt, max_tokens, count, is_ahead=is_ahead)

    def is_healthy(self, max_step_s: float) -> bool:
        """Return True if the thread lives, takes requests, and is idle or made progress within ``max_step_s``."""
        with self._changed:
            return self._thread.is_alive() and not self._stopping and self._step_age_s() <= max_step_s

    def stop(self, timeout_s: float) -> None:
        """Stop after the current step. Active requests fail with EngineStopped, after ``timeout_s`` at the latest."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        self._close()  # a thread that was never started, or hangs in a step, does not do it

    @abstractmethod
    def _new_state(self, request: RequestT) -> StateT:
        """Validate a request and return its state. Raises as ``check``."""

    @abstractmethod
    def _has_capacity(self, num_prompt: int, max_tokens: int, count: int, *, is_ahead: bool) -> bool:
        """Answer ``can_admit`` when there are slots. The caller holds the lock."""

    @abstractmethod
    def _step(self) -> None:
        """Schedule, run, postprocess."""

    def _added(self, state: StateT) -> None:
        """Called with the lock held when a request became active."""

    def _removed(self, state: StateT, *, is_sound: bool) -> None:
        """Called with the lock held when a request has ended; not ``is_sound``: it has failed."""

    def _take_rest(self, state: StateT) -> Delta | None:
        """Return the last text of a request that fails, if it has any. The caller holds the lock."""

    def _reset(self) -> None:
        """Called with the lock held before all active requests are dropped, whatever state the schedule is in."""

    def _unlocked(self) -> None:
        """Called without the lock after each change, before the outbox is delivered."""

    def _add(self, state: StateT, future: Future[ResultT]) -> None:
        """Make a request active. Raises EngineStopped, and RequestInvalid for an id that is in use."""
        if self._stopping:
            raise EngineStopped("the engine is stopping")
        if state.id in self._active:
            raise RequestInvalid(f"the request id {state.id} is in use")
        if not self._active:
            self._progress_at = state.submitted_at
        self._active[state.id] = state
        self._futures[state.id] = future
        self._added(state)
        self._changed.notify_all()

    def _complete(self, state: StateT, result: ResultT, outbox: Outbox[ResultT]) -> None:
        outbox.completions.append((self._futures[state.id], result))
        self._remove(state, is_sound=True)

    def _fail(self, state: StateT, error: EngineError, outbox: Outbox[ResultT]) -> None:
        self._add_failure(state, error, outbox)
        self._remove(state, is_sound=False)

    def _add_failure(self, state: StateT, error: EngineError, outbox: Outbox[ResultT]) -> None:
        outbox.add(self._take_rest(state))  # the next attempt continues after the text that was shown
        error.progress = state.progress
        outbox.failures.append((self._futures[state.id], error))

    def _remove(self, state: StateT, *, is_sound: bool) -> None:
        del self._active[state.id], self._futures[state.id]
        self._removed(state, is_sound=is_sound)

    @contextmanager
    def _locked(self) -> Iterator[Outbox[ResultT]]:
        """Hold the lock. Deliver the outbox when it is released, even if the change fails midway."""
        outbox: Outbox[ResultT] = Outbox()
        try:
            with self._changed:
                try:
                    yield outbox
                finally:
                    self._counters.count_outcomes(len(outbox.completions), len(outbox.failures))
        finally:
            self._unlocked()
            outbox.deliver(self.on_deltas, self.on_room)

    def _note_progress(self) -> None:
        """Note that a forward pass has ended, well or not. The caller holds the lock."""
        self._progress_at = self._clock()

    def _stats_without_cache(self, running: int) -> EngineStats:
        """Return the statistics of an engine without KV blocks, output tokens and drafts: those are 0."""
        return self._counters.stats(
            running=running,
            waiting=len(self._active) - running,
            max_slots=self._max_slots,
            last_step_age_s=self._step_age_s(),
            free_blocks=0,
            total_blocks=0,
            preempted=0,
            cached_tokens=0,
            evicted_blocks=0,
            drafted_tokens=0,
            accepted_tokens=0,
        )

    def _step_age_s(self) -> float:
        return max(0.0, self._clock() - self._progress_at) if self._active else 0.0

    def _enter_thread(self) -> None:
        """Prepare the engine's thread, on it, before its first step. Nothing is to be done for most engines."""

    def _loop(self) -> None:
        try:
            self._enter_thread()
            while self._wait_for_work():
                self._step()
        except BaseException as error:  # the thread ends here, whatever the error is
            log.exception("engine_died")
            self._close()
            call_out("on_failed", partial(self.on_failed, error))
        else:
            self._close()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._active or self._stopping)
            return not self._stopping

    def _close(self) -> None:
        """Take no more requests, and fail those that are active. May be called more than once."""
        with self._locked() as outbox:
            self._stopping = True
            for state in self._active.values():
                error = EngineStopped("the engine stopped before the request ended")
                error.has_begun = state.has_begun
                self._add_failure(state, error, outbox)
            self._reset()
            self._active.clear()
            self._futures.clear()


def failure_of(cause: Exception, what: str) -> EngineError:
    """Return the error of a request. ``what`` (step, pass) failed with ``cause``."""
    kind = OutOfMemory if is_out_of_memory(cause) else StepFailed
    error = kind(f"the model's {what} failed ({type(cause).__name__}); the request may be tried again")
    error.__cause__ = cause
    return error
