"""Answers of OpenAI's chat completion shape, whole and in chunks.

Knows how a job's end reads as a completion and how the text of a second attempt may go on where the first was cut.
Knows no HTTP and reads nothing.
"""

from typing import Any

from producer_api.errors import JobUnanswered
from store.jobs import Job
from store.states import JobState


class Diverged(Exception):
    """A new attempt's text does not begin with what was sent of the old one."""


class Splice:
    """The text sent so far, and a later attempt that did not keep all of it.

    OpenAI's stream cannot take text back. A greedy or seeded attempt says the same again, so what is already sent is
    swallowed; as soon as the new text differs, ``Diverged`` is raised. Texts that differ are never glued.
    """

    def __init__(self) -> None:
        self._sent = ""
        self._again = ""
        self._is_repeating = False

    def restart(self, kept: str) -> str:
        """A new attempt begins after ``kept``; return what of that is new. Raises Diverged."""
        self._again = ""
        self._is_repeating = bool(self._sent)
        return self.add(kept)

    def add(self, text: str) -> str:
        """Take the attempt's next text and return what of it is new. Raises Diverged."""
        if not self._is_repeating:
            self._sent += text
            return text
        self._again += text
        shared = min(len(self._again), len(self._sent))
        if self._again[:shared] != self._sent[:shared]:
            raise Diverged
        if len(self._again) < len(self._sent):
            return ""
        new = self._again[len(self._sent) :]
        self._sent, self._is_repeating = self._again, False
        return new

    def finish(self) -> None:
        """The attempt is complete. Raises Diverged if it is shorter than what was sent."""
        if self._is_repeating and self._again != self._sent:
            raise Diverged


class Completion:
    """Builds the answer for one job, whose id and version every part of it names."""

    def __init__(self, job: Job, *, with_usage: bool = False) -> None:
        self._id = f"chatcmpl-{job.id.removeprefix('job_')}"
        self._created = int(job.created_at.timestamp())
        self._model = f"{job.model}@{job.model_version}"
        self._with_usage = with_usage

    def whole(self, job: Job) -> dict[str, Any]:
        """Return the completion of a job that has succeeded; raise JobUnanswered for any other."""
        output = answer_of(job)
        message = {"role": "assistant", "content": output["text"], "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": output["finish_reason"]}
        return {**self._frame("chat.completion"), "choices": [choice], "usage": _usage(job)}

    def opening(self) -> dict[str, Any]:
        """Return the first chunk: who speaks."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None}, None)

    def piece(self, text: str) -> dict[str, Any]:
        """Return a chunk of text."""
        return self._chunk({"content": text}, None)

    def closing(self, job: Job) -> list[dict[str, Any]]:
        """Return the last chunks of a job that has succeeded; raise JobUnanswered for any other."""
        chunks = [self._chunk({}, answer_of(job)["finish_reason"])]
        if self._with_usage:
            chunks.append({**self._frame("chat.completion.chunk"), "choices": [], "usage": _usage(job)})
        return chunks

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = {**self._frame("chat.completion.chunk"), "choices": [choice]}
        return chunk | {"usage": None} if self._with_usage else chunk

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


def answer_of(job: Job) -> dict[str, Any]:
    """Return the output of a job that has succeeded; raise JobUnanswered that says why there is none."""
    if job.state is JobState.SUCCEEDED and job.output is not None:
        return job.output
    error = job.error or {}
    default = {JobState.CANCELLED: "cancelled", JobState.EXPIRED: "deadline_exceeded"}.get(job.state, "internal_error")
    code = str(error.get("code", default))
    reason = error.get("message") or f"the job was {job.state}"
    raise JobUnanswered(f"job {job.id} {_ended_as(job.state)}: {reason}", code=code, job_id=job.id)


def _ended_as(state: JobState) -> str:
    return {JobState.CANCELLED: "was cancelled", JobState.EXPIRED: "ran out of time"}.get(state, "failed")


def _usage(job: Job) -> dict[str, Any]:
    usage = job.usage or {}
    tokens_in, tokens_out = int(usage.get("input_tokens", job.input_tokens)), int(usage.get("output_tokens", 0))
    return {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
