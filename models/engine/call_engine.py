"""The engine for work that waits: calls of other servers, searches. Each request runs on a thread of its own.

    submit ──▶ a thread computes the inputs ──▶ result | EngineError
                  └─ cancelled, deadline, too slow: the request ends at once, and its thread is left behind

A thread cannot be ended from outside, so what it does may still happen after the request has ended. Until it returns it
keeps its slot. When threads that were left behind have all slots, the engine is not healthy any more: it runs no other
request, and a new process would.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from headrace.models.engine.batching_engine import BatchingEngine, failure_of, ignore
from headrace.models.engine.requests import (
    CallTimedOut,
    EncodeOutput,
    EncodeRequest,
    EncodeRow,
    EngineError,
    EngineStats,
    FinishReason,
    NumericalError,
    RequestInvalid,
)
from headrace.models.engine.runner import Encoder
from headrace.models.engine.sequence import ActiveRequest

TICK_S = 0.1
"""A cancelled or late request ends after this time at the latest."""


@dataclass(frozen=True, slots=True)
class CallConfig:
    """At most ``max_slots`` requests run; one that takes longer than ``timeout_s`` fails."""

    max_slots: int = 32
    timeout_s: float = 60.0


class CallState(ActiveRequest):
    """An active request: its thread, and what that has found."""

    def __init__(self, request: EncodeRequest, now: float) -> None:
        super().__init__(now)
        self.request: EncodeRequest = request
        self.thread: threading.Thread | None = None
        self.started_at = now
        self.found: list[bytes] | EngineError | None = None

    @property
    def is_waiting(self) -> bool:
        """True if something is to be done for it now."""
        return self.thread is None or self.found is not None or self.ending is not None

    def result(self, reason: FinishReason, now: float) -> EncodeOutput:
        """Return the result of a request that ends."""
        is_done = reason is FinishReason.STOP and isinstance(self.found, list)
        vectors = tuple(self.found) if is_done and isinstance(self.found, list) else ()
        num_tokens = self.request.num_tokens if is_done else 0
        return EncodeOutput(self.request.id, vectors, reason, num_tokens, now - self.submitted_at)


class CallEngine(BatchingEngine[EncodeRequest, EncodeOutput, CallState]):
    """Runs each request by ``encoder.run`` on a thread of its own, so the encoder is called from many threads."""

    def __init__(
        self,
        encoder: Encoder,
        config: CallConfig,
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
        self._left_behind: set[threading.Thread] = set()

    @property
    def capacity_tokens(self) -> None:
        """None: a request may have any size."""

    def stats(self) -> EngineStats:
        """Return the current statistics. A step is a look at the calls: it ends however long they take."""
        with self._changed:
            running = sum(state.thread is not None for state in self._active.values())
            return self._stats_without_cache(running)

    def is_healthy(self, max_step_s: float) -> bool:
        """As ``Engine.is_healthy``; False also when threads that were left behind have every slot."""
        with self._changed:
            is_stuck = len(self._left_behind) >= self._max_slots and not self._active
        return not is_stuck and super().is_healthy(max_step_s)

    def _step(self) -> None:
        with self._locked() as outbox:
            now = self._clock()
            self._note_progress()
            self._counters.count_pass()
            for state in list(self._active.values()):
                reason = state.forced_end(now)
                if isinstance(state.found, EngineError) and reason is None:
                    self._fail(state, state.found, outbox)
                elif isinstance(state.found, list):
                    self._counters.count_tokens(prompt=state.request.num_tokens)
                    self._complete(state, state.result(FinishReason.STOP, now), outbox)
                elif reason is not None:
                    self._complete(state, state.result(reason, now), outbox)
                elif state.thread is None:
                    self._begin(state, now)
                elif now - state.started_at >= self._config.timeout_s:
                    self._fail(state, CallTimedOut(f"no answer after {self._config.timeout_s:g} s"), outbox)
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping or any(state.is_waiting for state in self._active.values()), TICK_S
            )

    def _begin(self, state: CallState, now: float) -> None:
        state.thread = threading.Thread(target=self._call, args=(state,), name="call", daemon=True)
        state.started_at = now
        state.thread.start()

    def _call(self, state: CallState) -> None:
        found = self._found(state.request, partial(self._is_wanted, state))
        with self._changed:
            state.found = found
            self._left_behind.discard(threading.current_thread())
            self._changed.notify_all()
        if state.id not in self._active:
            self.on_room()

    def _is_wanted(self, state: CallState) -> bool:
        return state.id in self._active and not self._stopping and state.forced_end(self._clock()) is None

    def _found(self, request: EncodeRequest, is_wanted: Callable[[], bool]) -> list[bytes] | EngineError:
        given = enumerate(request.inputs)
        rows = [EncodeRow(request.id, tokens, request.options, index, is_wanted) for index, tokens in given]
        try:
            vectors: list[bytes] = []
            for vector in self._encoder.run(rows):
                if isinstance(vector, Exception):
                    raise vector
                if vector is None:
                    raise NumericalError
                vectors.append(vector)
        except EngineError as error:
            return error
        except Exception as error:  # noqa: BLE001 - every error becomes the outcome of its request
            return failure_of(error, "call")
        return vectors

    def _removed(self, state: CallState, *, is_sound: bool) -> None:
        if state.thread is not None and state.found is None:
            self._left_behind.add(state.thread)

    def _new_state(self, request: EncodeRequest) -> CallState:
        if not request.inputs:
            raise RequestInvalid("a request needs an input")
        return CallState(request, self._clock())

    def _has_capacity(self, num_prompt: int, _max_tokens: int, count: int, *, is_ahead: bool) -> bool:
        return len(self._active) + len(self._left_behind) + count <= self._max_slots
