"""The state of a request in the engine: the part that is the same for each kind of request."""

from models.engine.requests import EmittedOutput, EncodeRequest, EngineRequest, FinishReason, RequestId


class ActiveRequest:
    """One request from its submission to its outcome. Times are readings of the engine's clock, in seconds."""

    request: EngineRequest | EncodeRequest

    def __init__(self, now: float) -> None:
        self.submitted_at = now
        self.ending: FinishReason | None = None  # set from outside: end before the next step, for this reason

    @property
    def id(self) -> RequestId:
        """The request's id."""
        return self.request.id

    @property
    def progress(self) -> EmittedOutput:
        """The output that was shown so far."""
        return EmittedOutput()

    def forced_end(self, now: float) -> FinishReason | None:
        """Return why the request must end before the next step, or None."""
        if self.ending is not None:
            return self.ending
        deadline = self.request.deadline
        return FinishReason.DEADLINE if deadline is not None and now >= deadline else None
