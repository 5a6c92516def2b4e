"""Answers of OpenAI's older text completion shape, whole and in chunks. Knows no HTTP and reads nothing."""

import codecs
from collections.abc import Iterator, Mapping
from typing import Any

from producer_api.openai.chat_answer import Entries, answer_of, usage_of
from store.jobs.jobs import Job


class TextCompletion:
    """Builds the answer for one job, whose id and version every part of it names.

    A token's ``text_offset`` counts the characters of the answer before it, so an answer's parts are built in order.
    """

    def __init__(self, job: Job, *, with_usage: bool = False) -> None:
        self._id = f"cmpl-{job.id.removeprefix('job_')}"
        self._created = int(job.created_at.timestamp())
        self._model = f"{job.model}@{job.model_version}"
        self._with_usage = with_usage
        self._offsets = _Offsets()

    def whole(self, job: Job) -> dict[str, Any]:
        """Return the completion of a job that has succeeded; raise JobUnanswered for any other."""
        output = answer_of(job)
        entries = output.get("logprobs")
        return {**self._answer(output["text"], entries, output["finish_reason"]), "usage": usage_of(job)}

    def opening(self) -> list[dict[str, Any]]:
        """Return nothing: the first chunk is one of text."""
        return []

    def pieces(self, text: str, entries: Entries = ()) -> list[dict[str, Any]]:
        """Return a chunk of text, with the logprobs of its tokens if the job asks."""
        return [self._chunk(self._answer(text, entries or None, None))]

    def closing(self, job: Job) -> list[dict[str, Any]]:
        """Return the last chunks of a job that has succeeded; raise JobUnanswered for any other."""
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
            "choices": [choice],
        }

    def _logprobs(self, entries: Entries) -> dict[str, Any]:
        return {
            "tokens": [_name(entry) for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            # As OpenAI has it: the token that came is there too, whether or not it is among the likeliest.
            "top_logprobs": [
                {_name(one): one["logprob"] for one in (*entry["top_logprobs"], entry)} for entry in entries
            ],
            "text_offset": list(self._offsets.of(entries)),
        }


class _Offsets:
    """Where tokens begin in the text; one that goes on with a half character begins behind what is whole."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_characters = 0

    def of(self, entries: Entries) -> Iterator[int]:
        for entry in entries:
            yield self._num_characters
            self._num_characters += len(self._utf8.decode(bytes(entry["bytes"])))


def _name(entry: Mapping[str, Any]) -> str:
    """Return the token's text, or its bytes written out if they are no whole characters: several such differ."""
    own = bytes(entry["bytes"])
    try:
        return own.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in own)
