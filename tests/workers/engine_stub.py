"""An engine for tests: it has room for every request and computes nothing. Tests override what they need."""

from concurrent.futures import Future
from typing import Any

from headrace.models.engine.requests import EngineStats, FinishReason, RequestId

IDLE = EngineStats(
    steps=0,
    running=0,
    waiting=0,
    free_blocks=1,
    total_blocks=1,
    max_slots=1,
    batch_rows=0,
    padding_tokens=0,
    prompt_tokens=0,
    output_tokens=0,
    completed=0,
    failed=0,
    preempted=0,
    cached_tokens=0,
    evicted_blocks=0,
    drafted_tokens=0,
    accepted_tokens=0,
    mean_batch=0.0,
    peak_batch=0,
    last_step_age_s=0.0,
)
"""The statistics of an engine without requests."""


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
