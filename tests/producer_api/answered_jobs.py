"""Jobs that have ended with an answer, and their payloads, for tests of the answers that clients see."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from headrace.store.jobs.jobs import Job
from headrace.store.schema.job_states import JobState

AT = datetime(2026, 11, 25, tzinfo=UTC)
CALL = '{"name": "f", "arguments": {"a": 1}}'
ASKED = {"input": {"messages": [{"role": "user", "content": "x"}], "tools": [{"function": {"name": "f"}}]}}
CALLS: dict[str, Any] = {**ASKED, "sampling": {}, "tool_style": "json"}
THINKS: dict[str, Any] = {"input": {"messages": ASKED["input"]["messages"]}, "sampling": {}}
THINKS["reasoning"] = {"opening": "<t>", "closing": "</t>"}
TURNS: dict[str, Any] = {
    "tool_style": "json",
    "calls": {"functions": ["f"], "left": 2},
    "steps": [{"name": "answer", "server_tools": {"names": ["f"]}}],
}
USAGE = {"input_tokens": 5, "output_tokens": 3, "cached_tokens": 2, "reasoning_tokens": 1}


def ended(text: str, state: JobState = JobState.SUCCEEDED, finish_reason: str = "stop", **changes: Any) -> Job:
    """A job of the task ``generate`` that has ended at once."""
    job = Job(
        id="job_1",
        tenant_id="t",
        task="generate",
        state=state,
        model="tiny",
        model_version=1,
        queue="tiny@1",
        class_rank=0,
        priority=5,
        payload={},
        input_tokens=3,
        metadata={},
        webhook=None,
        epoch=1,
        attempt=1,
        max_attempts=3,
        owner=None,
        lease_expires_at=None,
        announced_at=None,
        cancel_requested_at=None,
        deadline_at=None,
        created_at=AT,
        started_at=AT,
        completed_at=AT,
        output={"text": text, "finish_reason": finish_reason},
        error=None,
        usage={"input_tokens": 3, "output_tokens": 1},
        num_deltas=1,
        output_purged_at=None,
    )
    return replace(job, **changes)


def job_of(text: str, payload: dict[str, Any] | None = None, finish_reason: str = "stop", **output: Any) -> Job:
    """A job that has ended with this text."""
    made = {"text": text, "finish_reason": finish_reason, **output}
    return ended(text, payload=payload or {}, output=made, usage=USAGE)


def entry(token: str, logprob: float | None = -0.5, *others: dict[str, Any]) -> dict[str, Any]:
    """The log probabilities of a token, as a worker stores them."""
    return {"token": token, "logprob": logprob, "bytes": [*token.encode()], "top_logprobs": [*others]}
