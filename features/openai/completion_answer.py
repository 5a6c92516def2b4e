"""Builds text completion answers, whole and as stream chunks, from a job. No HTTP and no I/O."""

import codecs
from collections.abc import Iterator, Mapping
from typing import Any

from headrace.features.openai.chat_answer import made_of_input, usage_of
from headrace.producer_api.streaming.answers import Entries, answer_of
from headrace.store.jobs.jobs import Job


class CompletionAnswer:
    """Builds the text completion for one job, or for one choice of it.

    ``shared``: more fields of the answer and of each chunk.

    A token's ``text_offset`` counts the characters before it, so the chunks must be built in order.
    """

    def __init__(
        self, job: Job, _choice: int = 0, *, with_usage: bool = False, shared: Mapping[str, Any] | None = None
    ) -> None:
        self._id = f"cmpl-{job.id.removeprefix('job_')}"
        self._created = int(job.created_at.timestamp())
        self._model = f"{job.model}@{job.model_version}"
        self._shared = {**made_of_input(job), **(shared or {})}
        self._with_usage = with_usage
        self._offsets = _Offsets()

    def full_answer(self, job: Job) -> dict[str, Any]:
        """Return the completion of a succeeded job; raise JobUnanswered for any other."""
        output = answer_of(job)
        echo = output.get("prompt") or {"text": ""}
        entries = output.get("logprobs")
        if "tokens" in echo:
            entries = [*echo["tokens"], *(entries or [])]
        answer = self._answer(echo["text"] + output["text"], entries, output["finish_reason"])
        return {**answer, "usage": usage_of(job)}

    def opening(self) -> list[dict[str, Any]]:
        """Return nothing: the first chunk has text."""
        return []

    def pieces(self, text: str, entries: Entries = ()) -> list[dict[str, Any]]:
        """Return a chunk of text, with the logprobs of its tokens if requested."""
        return [self._chunk(self._answer(text, entries or None, None))]

    def closing(self, job: Job) -> list[dict[str, Any]]:
        """Return the last chunks of a succeeded job; raise JobUnanswered for any other."""
        chunks = [self._chunk(self._answer("", None, answer_of(job)["finish_reason"]))]
        if self._with_usage:
            chunks.append({**chunks[0], "choices": [], "usage": usage_of(job)})
        return chunks

    def _chunk(self, answer: dict[str, Any]) -> dict[str, Any]:
        return answer | {"usage": None} if self._with_usage else answer

    def _answer(self, text: str, entries: Entries | None, finish_reason: str | None) -> dict[str, Any]:
        logprobs = None if entries is None else self._logprobs(entries)
        choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            **self._shared,
            "choices": [choice],
        }

    def _logprobs(self, entries: Entries) -> dict[str, Any]:
        return {
            "tokens": [_name(entry) for entry in entries],
            "token_logprobs": [entry.get("logprob") for entry in entries],
            "top_logprobs": [_likely(entry) for entry in entries],
            "text_offset": list(self._offsets.of(entries)),
        }


class _Offsets:
    """Character offsets of tokens. A token inside a multi-byte character starts after the last whole character."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_characters = 0

    def of(self, entries: Entries) -> Iterator[int]:
        for entry in entries:
            yield self._num_characters
            self._num_characters += len(self._utf8.decode(bytes(entry["bytes"])))


def _likely(entry: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the likeliest tokens, and the token itself even if it is not one of them; None for a prompt's first one.

    So does OpenAI's API.
    """
    if entry.get("logprob") is None:
        return None
    return {_name(one): one["logprob"] for one in (*entry["top_logprobs"], entry)}


def _name(entry: Mapping[str, Any]) -> str:
    """Return the token's text, or its bytes in hex if they are not valid UTF-8, so that such tokens stay distinct."""
    own = bytes(entry["bytes"])
    try:
        return own.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in own)
