"""Builds OpenAI's response object: a pure function of a job and its stored response row.

job         response                                                  job         response
queued      queued; in_progress if started or not in background      cancelled   cancelled
running     in_progress                                               failed      failed
succeeded   completed; incomplete at the token limit                  expired     failed (job.status: expired)
"""

from typing import Any

from headrace.features.openai.chat_answer import made_of_input
from headrace.features.responses.answered_calls import ANSWERED
from headrace.features.responses.mcp_tools import LISTED
from headrace.features.responses.response_output import output_items
from headrace.features.responses.stored_responses import StoredResponse
from headrace.producer_api.http.views import seconds
from headrace.store.jobs.jobs import Job
from headrace.store.jobs.responses import response_id
from headrace.store.schema.job_states import JobState

# OpenAI's codes for ours; the job's own error is in ``job.error``.
_ERROR_CODES = {"policy_blocked_input": "invalid_prompt", "policy_blocked_output": "invalid_prompt"}

_SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty")


def status_of(job: Job, row: StoredResponse) -> str:
    """Return the response's status."""
    match job.state:
        case JobState.QUEUED:
            return "queued" if row.is_background and job.started_at is None else "in_progress"
        case JobState.RUNNING:
            return "in_progress"
        case JobState.SUCCEEDED:
            return "incomplete" if _incomplete(job) else "completed"
        case JobState.CANCELLED:
            return "cancelled"
        case JobState.FAILED | JobState.EXPIRED:
            return "failed"


def response_object(job: Job, row: StoredResponse) -> dict[str, Any]:
    """Return the response in its current state."""
    status = status_of(job, row)
    ended = {
        "completed_at": seconds(job.completed_at) if status == "completed" else None,
        "error": _error(job) if status == "failed" else None,
        "incomplete_details": _incomplete(job),
        "output": output_items(job, row),
        "usage": _usage(job),
    }
    extension = {"status": job.state, "attempt": job.attempt, "error": job.error}
    return _common_fields(job, row, status) | ended | {"job": {"id": job.id, "version": job.model_version, **extension}}


def initial_object(job: Job, row: StoredResponse, status: str) -> dict[str, Any]:
    """Return the response as it was when created; always the same for one job."""
    nothing: dict[str, Any] = {
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
    }
    return _common_fields(job, row, status) | nothing


def _common_fields(job: Job, row: StoredResponse, status: str) -> dict[str, Any]:
    sampling = (job.payload or {}).get("sampling", {})
    return {
        "id": response_id(job.id),
        "object": "response",
        "created_at": int(job.created_at.timestamp()),
        "status": status,
        "background": row.is_background,
        "model": f"{job.model}@{job.model_version}",
        "metadata": job.metadata,
        "previous_response_id": row.previous_id,
        "store": row.is_stored,
        **{name: value for name, value in row.request.items() if name not in (LISTED, ANSWERED)},
        # The model's defaults for values that the request left out.
        **{name: sampling[name] for name in _SAMPLING if name in sampling},
        **made_of_input(job),
    }


def _incomplete(job: Job) -> dict[str, str] | None:
    ran_out = job.state is JobState.SUCCEEDED and (job.output or {}).get("finish_reason") == "length"
    return {"reason": "max_output_tokens"} if ran_out else None


def _error(job: Job) -> dict[str, str]:
    error = job.error or {}
    message = error.get("message") or f"the job was {job.state}"
    return {"code": _ERROR_CODES.get(error.get("code", ""), "server_error"), "message": message}


def _usage(job: Job) -> dict[str, Any] | None:
    if job.usage is None:
        return None
    tokens_in, tokens_out = int(job.usage["input_tokens"]), int(job.usage["output_tokens"])
    return {
        "input_tokens": tokens_in,
        "input_tokens_details": {"cached_tokens": int(job.usage.get("cached_tokens", 0)), "cache_write_tokens": 0},
        "output_tokens": tokens_out,
        "output_tokens_details": {"reasoning_tokens": int(job.usage.get("reasoning_tokens", 0))},
        "total_tokens": tokens_in + tokens_out,
    }
