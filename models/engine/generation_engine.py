"""What the engines that generate text share: new tokens become text, deltas and outcomes.

A subclass produces the tokens, in its own process (``llm_engine``) or in an inference server (``models.external``).
"""

import logging
from abc import abstractmethod
from collections.abc import Callable
from functools import partial

from headrace.models.engine.batching_engine import BatchingEngine, Outbox
from headrace.models.engine.requests import (
    MAX_TOP_LOGPROBS,
    CompletionOutput,
    Delta,
    EngineError,
    EngineRequest,
    FinishReason,
    RequestInvalid,
    RequestTooLong,
)
from headrace.models.engine.scheduling.scheduler import LengthEstimator
from headrace.models.engine.sequence import SequenceState
from headrace.models.engine.stop_strings import TokenDecoder

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 0.25
"""A pause of a stream this short is not noticeable to a person who reads it."""


class StreamThrottle:
    """Limits how often new text of a request is shown, so that streaming leaves the processor to the model.

    A delta costs some tenths of a millisecond of processor time, however long its text is: a frame in Redis, an event
    at a server, a read at a client. So all running requests share one rate, about ``deltas_per_s``. With many requests
    each one is shown less often. If the rate is infinite, each token has its own delta.
    """

    def __init__(self, deltas_per_s: float) -> None:
        self._deltas_per_s = deltas_per_s

    def is_due(self, shown_at: float | None, now: float, num_running: int) -> bool:
        """Return True if a request that last showed text at ``shown_at`` may show more. The first text is not held."""
        return shown_at is None or now - shown_at >= min(LONGEST_PAUSE_S, num_running / self._deltas_per_s)


class GenerationEngine(BatchingEngine[EngineRequest, CompletionOutput, SequenceState]):
    """``detokenizer`` makes one detokenizer for each request.

    All requests together show new text at most about ``deltas_per_s`` times a second.
    """

    def __init__(
        self,
        detokenizer: Callable[[], TokenDecoder],
        *,
        max_slots: int,
        deltas_per_s: float,
        on_deltas: Callable[[list[Delta]], None],
        on_room: Callable[[], None],
        on_failed: Callable[[BaseException], None],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(max_slots=max_slots, on_deltas=on_deltas, on_room=on_room, on_failed=on_failed, clock=clock)
        self._detokenizer = detokenizer
        self._throttle = StreamThrottle(deltas_per_s)
        self._lengths = LengthEstimator()

    @property
    @abstractmethod
    def capacity_tokens(self) -> int:
        """Tokens of the longest request, prompt and ``max_tokens`` together."""

    @property
    @abstractmethod
    def _num_running(self) -> int:
        """The requests that generate now."""

    def _end_forced(self, now: float, outbox: Outbox[CompletionOutput]) -> None:
        """End the requests that are cancelled or late. The caller holds the lock."""
        for seq in list(self._active.values()):
            if seq.forced_end(now) is not None:
                self._advance(seq, partial(seq.forced_end, now), now, outbox)

    def _advance(
        self, seq: SequenceState, take: Callable[[], FinishReason | None], now: float, outbox: Outbox[CompletionOutput]
    ) -> None:
        """Advance one request by ``take``, and complete it if it ends. If its detokenizer raises, it fails alone."""
        try:
            reason = take()
            end = None if reason is None else seq.close(reason)
        except Exception as cause:
            log.exception("request_failed request_id=%s", seq.id)
            error = EngineError("the output could not be turned into text")
            error.__cause__ = cause
            self._fail(seq, error, outbox)
            return
        if end is not None or self._throttle.is_due(seq.shown_at, now, self._num_running):
            outbox.add(seq.take_delta(now))
        if end is not None:
            if end in {FinishReason.STOP, FinishReason.LENGTH}:
                self._lengths.record(len(seq.output))
            self._complete(seq, seq.completion(end, now), outbox)

    def _take_rest(self, state: SequenceState) -> Delta | None:
        return state.take_delta(self._clock())

    def _validate(self, request: EngineRequest) -> None:
        """Raise RequestInvalid or RequestTooLong for numbers with which no engine can compute the request."""
        least = 0 if request.sampling.echo else 1
        if not request.prompt or request.sampling.max_tokens < least or "" in request.sampling.stop:
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
