"""An engine for tests: it has room for every request and computes nothing. Tests override what they need."""

from concurrent.futures import Future
from typing import Any

from models.engine.requests import EngineStats, FinishReason, RequestId


class EngineStub:
    """Implements ``models.engine.protocol.Engine``."""

    capacity_tokens: int | None = None
    why_not: str | None = None

    def start(self) -> None:
        pass

    def submit(self, request: Any) -> Future[Any]:
        raise NotImplementedError

    def check(self, request: Any) -> None:
        pass

    def cancel(self, request_id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> bool:
        return False

    def can_admit(self, num_prompt: int, max_tokens: int, *, count: int = 1, is_ahead: bool = False) -> bool:
        return True

    def stats(self) -> EngineStats:
        raise NotImplementedError

    def is_healthy(self, max_step_s: float) -> bool:
        return True

    def stop(self, timeout_s: float) -> None:
        pass
