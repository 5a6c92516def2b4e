"""A request's stay in the engine, as its job's thread sees it: in, told of what happened meanwhile, and out."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from models.engine.requests import FinishReason
from workers.runs.engine_admission import Admission
from workers.runs.in_flight import Attempt, HeldJobs

T = TypeVar("T")


class Entrance:
    """The door between the threads of jobs and the engine."""

    def __init__(self, admission: Admission, held: HeldJobs) -> None:
        self._admission = admission
        self._held = held

    def stay(
        self,
        attempt: Attempt,
        submit: Callable[[], Future[T]],
        cancel: Callable[[str, FinishReason], object],
        *,
        num_prompt: int,
        max_tokens: int,
    ) -> T:
        """Submit the attempt's request and wait for its outcome. Raises what ``submit`` does, and the outcome's error.

        ``num_prompt`` and ``max_tokens`` are what the request asks of the engine; ``cancel`` is the engine's.
        """
        future = submit()
        self._admission.entered(num_prompt, max_tokens)
        if self._held.is_closed or not self._held.owns(attempt):
            # Lost or handed back while the request was made: nobody told one that was not there yet.
            cancel(attempt.key, FinishReason.HANDED_BACK)
        try:
            return future.result()
        finally:
            self._admission.left()
