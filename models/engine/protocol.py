"""The interface of an engine, as the workers use it. Every method may be called from any thread.

An engine takes requests, gives each one future, and shows the text of a request while it is generated:

    submit ──▶ future ──▶ result | EngineError       exactly one outcome for each accepted request
                 └── deltas, by the callback that the engine was constructed with

Implementations are constructed with their callbacks:

    on_deltas   gets all new texts of a step in one call, before the outcomes of that step
    on_room     is called after requests have ended: ``can_admit`` may have a new answer
    on_failed   gets the error that ended the engine; afterwards the engine takes no requests

A callback must not block. If it raises, the error is logged and changes nothing.
"""

from concurrent.futures import Future
from typing import Any, Protocol, TypeAlias, TypeVar

from headrace.models.engine.requests import EngineStats, FinishReason, RequestId

RequestT = TypeVar("RequestT", contravariant=True)
ResultT = TypeVar("ResultT")


class Engine(Protocol[RequestT, ResultT]):
    """Runs requests of one model together. ``RequestT`` and ``ResultT`` are values of ``models.engine.requests``."""

    @property
    def capacity_tokens(self) -> int | None:
        """Tokens of the longest request, prompt and output together. None: the context window is the only limit."""
        ...

    @property
    def why_not(self) -> str | None:
        """Why no requests are admitted at the moment, as a sentence for an operator; None if they may be."""
        ...

    def start(self) -> None:
        """Start running requests. Requests may be submitted before."""
        ...

    def submit(self, request: RequestT) -> Future[ResultT]:
        """Take a request and return the future of its outcome. The future cannot be cancelled: use ``cancel``.

        Raises what ``check`` raises, and EngineStopped when the engine is stopping.
        """
        ...

    def check(self, request: RequestT) -> None:
        """Raise RequestInvalid, RequestTooLong or CheckpointMismatch for a request that can never be computed."""
        ...

    def cancel(self, request_id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> bool:
        """End a request or a group before the next step; False if it is not in the engine. The first reason stays.

        With HANDED_BACK no more of its text is shown, and another attempt continues from its progress.
        """
        ...

    def can_admit(self, num_prompt: int, max_tokens: int, *, count: int = 1, is_ahead: bool = False) -> bool:
        """Return True if there is room for ``count`` more requests.

        Each has ``num_prompt`` prompt tokens and generates at most ``max_tokens``. ``is_ahead``: it is of the fast
        lane, so what other requests have left does not keep it out, if there is memory for it.
        """
        ...

    def stats(self) -> EngineStats:
        """Return the current statistics."""
        ...

    def is_healthy(self, max_step_s: float) -> bool:
        """Return True if the engine takes requests, and is idle or has finished a step within ``max_step_s``."""
        ...

    def stop(self, timeout_s: float) -> None:
        """Stop after the current step. Active requests fail with EngineStopped, after ``timeout_s`` at the latest."""
        ...


AnyEngine: TypeAlias = Engine[Any, Any]
"""An engine of whatever task: for callers that submit nothing."""
