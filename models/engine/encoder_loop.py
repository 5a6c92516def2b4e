"""The encoder's loop: a request brings whole inputs, and each gets a vector. Decide, run, record, until it is stopped.

To those who submit, cancel and watch it has the face of ``models.engine.loop.Engine``, whose rules it keeps: one lock,
never held while the model runs or foreign code is called, and one outcome for every request that was accepted.

    submit ──▶ inside ──▶ Encoded             stop, cancelled, deadline, handed back
                  └─────▶ EngineError         not finite, pass failed, engine stopped or its thread died

A request that fails takes none of those along that were computed with it: a pass that raises is cut in halves.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from models.engine.engine_thread import Stepping
from models.engine.outbox import call_out
from models.engine.passes import MAX_PASSES, is_out_of_memory
from models.engine.requests import (
    Encoded,
    EncodeRequest,
    EncodeRow,
    EngineError,
    EngineStats,
    EngineStopped,
    FinishReason,
    NumericalError,
    OutOfMemory,
    Progress,
    RequestInvalid,
    RequestTooLong,
    StepFailed,
)
from models.engine.runner import Encoder, RunnerBroken
from models.engine.scheduling.packing import Claimant, choose, pack
from models.engine.statistics import NUM_RECENT_BATCHES

log = logging.getLogger(__name__)

STEPS_AHEAD = 2
"""At most so many steps' tokens wait inside; what is more stays where another worker can have it."""

Vector = bytes | Exception


@dataclass(frozen=True, slots=True)
class EncodeConfig:
    """At most ``max_slots`` requests are inside; about ``step_tokens`` tokens are computed between two decisions."""

    max_slots: int = 32
    step_tokens: int = 4096


class _Live:
    """A request inside: the vectors it has, and the places of the inputs that it lacks, the longest first."""

    def __init__(self, request: EncodeRequest, now: float) -> None:
        self.request = request
        self.future: Future[Encoded] = Future()
        self.future.set_running_or_notify_cancel()
        self.submitted_at = now
        self.ending: FinishReason | None = None
        self.num_tokens = 0
        self.vectors: list[bytes] = [b""] * len(request.inputs)
        self.lacking = sorted(range(len(request.inputs)), key=lambda place: -len(request.inputs[place]))

    def claimant(self) -> Claimant:
        """Return what is asked for."""
        lengths = [len(self.request.inputs[place]) for place in self.lacking]
        return Claimant(lengths, self.num_tokens, self.request.class_rank)

    def row(self, place: int) -> EncodeRow:
        """Return an input as the model takes it."""
        return EncodeRow(self.request.id, self.request.inputs[place], self.request.dimensions)

    def forced_end(self, now: float) -> FinishReason | None:
        """Return why the request must end before the next step, if it must."""
        if self.ending is not None:
            return self.ending
        late = self.request.deadline is not None and now >= self.request.deadline
        return FinishReason.DEADLINE if late else None

    def end(self, reason: FinishReason, now: float) -> Encoded:
        """Return the outcome."""
        vectors = tuple(self.vectors) if reason is FinishReason.STOP else ()
        return Encoded(self.request.id, vectors, reason, self.num_tokens, now - self.submitted_at)


Outcomes = list[tuple[_Live, Encoded | EngineError]]
Todo = list[tuple[_Live, int]]
"""A step: requests, and the places of their inputs that are computed."""


class EncodeEngine(Stepping[_Live]):
    """Micro-batches of inputs over one encoder."""

    def __init__(self, encoder: Encoder, config: EncodeConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._encoder = encoder
        self._config = config
        self._recent: deque[int] = deque(maxlen=NUM_RECENT_BATCHES)
        self._num_passes = self._num_rows = self._peak_rows = self._num_tokens = 0
        self._num_completed = self._num_failed = 0

    def submit(self, request: EncodeRequest) -> Future[Encoded]:
        """Take a request in, and return the future of its outcome, which cannot be cancelled: use ``cancel``.

        Raises RequestInvalid, RequestTooLong, and EngineStopped when stopping.
        """
        self._check(request)
        live = _Live(request, self._clock())
        with self._changed:
            self._enter(request.id, live, live.submitted_at)
        return live.future

    def cancel(self, request_id: str, reason: FinishReason = FinishReason.CANCELLED) -> bool:
        """Let a request end before the next step without its vectors; False if it is not inside.

        The first reason stays.
        """
        with self._changed:
            if request_id not in self._inside:
                return False
            live = self._inside[request_id]
            live.ending = live.ending or reason
            return True

    def can_admit(self, num_prompt: int, _max_tokens: int, *, count: int = 1) -> bool:
        """Return True if ``count`` requests of ``num_prompt`` tokens find slots, and not too much waits before them."""
        with self._changed:
            if not self._has_slots(count, self._config.max_slots):
                return False
            lacking = sum(live.request.num_tokens - live.num_tokens for live in self._inside.values())
            return lacking + (count - 1) * num_prompt < STEPS_AHEAD * self._config.step_tokens

    def stats(self) -> EngineStats:
        """Return a reading of the counters; what an encoder has not (KV blocks, output tokens) is 0."""
        with self._changed:
            running = sum(live.num_tokens > 0 for live in self._inside.values())
            return EngineStats(
                steps=self._num_passes,
                running=running,
                waiting=len(self._inside) - running,
                free_blocks=0,
                total_blocks=0,
                max_slots=self._config.max_slots,
                prompt_tokens=self._num_tokens,
                output_tokens=0,
                completed=self._num_completed,
                failed=self._num_failed,
                preempted=0,
                cached_tokens=0,
                evicted_blocks=0,
                drafted_tokens=0,
                accepted_tokens=0,
                mean_batch=self._num_rows / self._num_passes if self._num_passes else 0.0,
                peak_batch=self._peak_rows,
                last_step_age_s=self._step_age_s(),
                recent_batches=tuple(self._recent),
            )

    def _check(self, request: EncodeRequest) -> None:
        if not request.inputs or not all(request.inputs):
            raise RequestInvalid("a request needs an input, and each input a token")
        longest = max(map(len, request.inputs))
        if longest > self._encoder.context_window:
            raise RequestTooLong(f"an input has {longest} tokens, but at most {self._encoder.context_window} fit")

    def _step(self) -> None:
        todo = self._decide()
        if todo:
            self._record(todo, self._run([live.row(place) for live, place in todo]))

    def _decide(self) -> Todo:
        """Let those end who must, and return what to compute for those who stay."""
        now = self._clock()
        with self._telling() as outcomes:
            for live in list(self._inside.values()):
                reason = live.forced_end(now)
                if reason is not None:
                    self._let_go(live, live.end(reason, now), outcomes)
            staying = list(self._inside.values())
        counts = choose([live.claimant() for live in staying], self._config.step_tokens)
        return [(live, place) for live, count in zip(staying, counts, strict=True) for place in live.lacking[:count]]

    def _run(self, rows: Sequence[EncodeRow]) -> list[Vector]:
        """Return each row's vector, or what kept it from having one. Raises RunnerBroken."""
        found: list[Vector] = [b""] * len(rows)
        waiting = deque(pack([len(row.tokens) for row in rows], self._config.step_tokens))
        most_passes = len(waiting) + MAX_PASSES
        num_passes = 0
        while waiting:
            places = waiting.popleft()
            vectors = self._pass([rows[place] for place in places])
            num_passes += 1
            if isinstance(vectors, list):
                for place, vector in zip(places, vectors, strict=True):
                    found[place] = vector or NumericalError("the model's numbers were not finite")
            elif len(places) == 1 or num_passes >= most_passes:
                for place in places:
                    found[place] = vectors
            else:
                log.warning("pass_split rows=%d error=%s", len(places), type(vectors).__name__)
                half = len(places) // 2
                waiting.extendleft((places[half:], places[:half]))
        return found

    def _pass(self, rows: Sequence[EncodeRow]) -> list[bytes | None] | Exception:
        try:
            vectors = self._encoder.run(rows)
            if len(vectors) != len(rows):
                raise ValueError("the encoder's vectors do not match the rows")
        except RunnerBroken:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the rows, whose requests are told
            return error
        finally:
            self._count_pass(len(rows))
        return vectors

    def _count_pass(self, num_rows: int) -> None:
        """Note that a pass has ended, well or not: the engine is alive."""
        with self._changed:
            self._progress_at = self._clock()
            self._num_passes += 1
            self._num_rows += num_rows
            self._peak_rows = max(self._peak_rows, num_rows)
            self._recent.append(num_rows)

    def _record(self, todo: Todo, vectors: Sequence[Vector]) -> None:
        """Give each request what it got, and let those go that have all or failed."""
        now = self._clock()
        with self._telling() as outcomes:
            for (live, place), vector in zip(todo, vectors, strict=True):
                if live.request.id not in self._inside:
                    continue  # it failed with an earlier input, or a stop that did not wait has told everybody
                if isinstance(vector, Exception):
                    self._let_go(live, _error_of(vector), outcomes)
                    continue
                live.vectors[place] = vector
                live.lacking.remove(place)
                live.num_tokens += len(live.request.inputs[place])
                self._num_tokens += len(live.request.inputs[place])
                if not live.lacking:
                    self._let_go(live, live.end(FinishReason.STOP, now), outcomes)

    def _let_go(self, live: _Live, outcome: Encoded | EngineError, outcomes: Outcomes) -> None:
        del self._inside[live.request.id]
        outcomes.append((live, outcome))

    @contextmanager
    def _telling(self) -> Iterator[Outcomes]:
        """Hold the lock, and tell the outcomes when it is released, even if the change fails midway."""
        outcomes: Outcomes = []
        try:
            with self._changed:
                try:
                    yield outcomes
                finally:
                    failed = sum(isinstance(outcome, EngineError) for _, outcome in outcomes)
                    self._num_failed += failed
                    self._num_completed += len(outcomes) - failed
        finally:
            for live, outcome in outcomes:
                tell = live.future.set_exception if isinstance(outcome, EngineError) else live.future.set_result
                call_out("on_done", partial(tell, outcome))  # type: ignore[arg-type]  # each takes its own kind
            if self.on_credit is not None and outcomes:
                call_out("on_credit", self.on_credit)

    def _close(self) -> None:
        """Take nobody any more, and fail everybody who is inside."""
        with self._telling() as outcomes:
            self._stopping = True
            for live in list(self._inside.values()):
                error = EngineStopped("the engine stopped before the request ended")
                error.progress = Progress()
                self._let_go(live, error, outcomes)


def _error_of(cause: Exception) -> EngineError:
    if isinstance(cause, EngineError):
        return cause
    kind = OutOfMemory if is_out_of_memory(cause) else StepFailed
    error = kind(f"the model's pass failed ({type(cause).__name__}); the request may be tried again")
    error.__cause__ = cause
    return error
