"""What the routes that answer with a job share: the parts of an answer, and why a job has none."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from headrace.producer_api.server.errors import JobUnanswered
from headrace.store.jobs.jobs import Job
from headrace.store.schema.job_states import JobState
from headrace.store.tasks.generate import GeneratePayload

Entries = Sequence[Mapping[str, Any]]
"""Logprobs of consecutive tokens in OpenAI's chat format: token, logprob, bytes, top_logprobs."""


class Answer(Protocol):
    """Builds the answer for one job, whole and in chunks, in the format of one OpenAI route."""

    def full_answer(self, job: Job) -> dict[str, Any]:
        """Return the answer of a succeeded job; raise JobUnanswered for any other."""
        ...

    def opening(self) -> Sequence[dict[str, Any]]:
        """Return the chunks before the first text."""
        ...

    def pieces(self, text: str, entries: Entries = ()) -> Sequence[dict[str, Any]]:
        """Return the chunks for the next text, with the logprobs of its tokens if requested."""
        ...

    def closing(self, job: Job) -> Sequence[dict[str, Any]]:
        """Return the last chunks of a succeeded job; raise JobUnanswered for any other."""
        ...


@runtime_checkable
class SeveralAnswers(Answer, Protocol):
    """The answer of a job with several choices."""

    def pieces_of(self, choice: int, text: str, entries: Entries) -> Sequence[dict[str, Any]]:
        """Return the chunks for the next text of a choice, as ``pieces``."""
        ...


def num_choices_of(job: Job) -> int:
    """Return the number of a job's choices."""
    if not {"n", "prompts"} & {*job.payload, *job.payload.get("input", {})}:
        return 1
    return GeneratePayload.model_validate(job.payload).num_choices


def answer_of(job: Job) -> dict[str, Any]:
    """Return the output of a succeeded job; raise JobUnanswered with the reason for any other."""
    if job.state is JobState.SUCCEEDED and job.output is not None:
        return job.output
    error = job.error or {}
    default = {JobState.CANCELLED: "cancelled", JobState.EXPIRED: "deadline_exceeded"}.get(job.state, "internal_error")
    code = str(error.get("code", default))
    reason = error.get("message") or f"the job was {job.state}"
    raise JobUnanswered(f"job {job.id} {_ended_as(job.state)}: {reason}", code=code, job_id=job.id)


def is_cut(job: Job) -> bool:
    """Return True if the model would have written more than the output has."""
    return (job.output or {}).get("finish_reason") not in ("stop", "tool_calls")


def _ended_as(state: JobState) -> str:
    return {JobState.CANCELLED: "was cancelled", JobState.EXPIRED: "ran out of time"}.get(state, "failed")
