"""Runs the request of an attempt in the engine, on the job's thread."""

from typing import Generic, TypeVar

from models.engine.protocol import Engine
from models.engine.requests import FinishReason
from workers.runs.engine_admission import EngineAdmission
from workers.runs.in_flight import Attempt, InFlightAttempts

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")


class EngineClient(Generic[RequestT, ResultT]):
    """Submits requests and waits for their results. Called from many threads at once."""

    def __init__(
        self, engine: Engine[RequestT, ResultT], admission: EngineAdmission, in_flight: InFlightAttempts
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._in_flight = in_flight

    def run(self, attempt: Attempt, request: RequestT, *, num_prompt: int, max_tokens: int) -> ResultT:
        """Submit a request and return its result. Raises what ``submit`` raises, and the request's EngineError.

        ``num_prompt`` and ``max_tokens`` are the size of the request in tokens, for the admission of later ones.
        """
        future = self._engine.submit(request)
        self._admission.entered(num_prompt, max_tokens)
        if self._in_flight.is_closed or not self._in_flight.owns(attempt):
            # The attempt was lost or handed back before its request was in the engine, so nothing has cancelled it.
            self._engine.cancel(attempt.id, FinishReason.HANDED_BACK)
        try:
            return future.result()
        finally:
            self._admission.left()

    def check(self, request: RequestT) -> None:
        """Raise as ``Engine.check``."""
        self._engine.check(request)

    def cancel(self, attempt: Attempt) -> None:
        """Cancel the attempt's request."""
        self._engine.cancel(attempt.id, FinishReason.CANCELLED)
