"""Builds chat completion answers, whole and as stream chunks, from a job. No HTTP and no I/O.

Each of several choices is read as a job with that output alone; ``ChoicesAnswer`` gives it its index.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from headrace.producer_api.streaming.answers import Answer, Entries, answer_of, is_cut, num_choices_of
from headrace.prompts.answer_reader import AnswerPiece, AnswerReader, ReasoningPiece, ReasoningReader, reader_for
from headrace.prompts.tool_calls import CallPiece, ContentPiece, call_id, choice_name
from headrace.store.jobs.jobs import Job
from headrace.store.payloads.reasoning import ReasoningFormat
from headrace.store.schema.job_states import FLOW_TASK
from headrace.store.tasks.generate import GeneratePayload


def answer_reader(job: Job) -> AnswerReader | None:
    """Return a reader of the job's text, None if all of it is content."""
    if job.payload.get("tool_style") is None and job.payload.get("reasoning") is None:
        return None
    if job.task == FLOW_TASK:
        # Of several steps, the payload has how the answer reasons. A chat that is answered by steps has no tools.
        marks = job.payload.get("reasoning")
        return None if marks is None else AnswerReader(ReasoningReader(ReasoningFormat.model_validate(marks)), None)
    return reader_for(GeneratePayload.model_validate(job.payload))


class AnswerEntries:
    """Keeps the logprobs of an answer's tokens until its text is sent, and drops those of the reasoning before it."""

    def __init__(self, reader: AnswerReader | None) -> None:
        self._reader = reader
        self._held: list[Mapping[str, Any]] = []
        self._num_bytes = 0  # of the entries that were dropped

    def add(self, entries: Entries) -> None:
        """Take the next entries."""
        self._held += entries

    def take(self) -> list[Mapping[str, Any]]:
        """Return the entries of the answer that came since the last call."""
        answer_at = 0 if self._reader is None else self._reader.answer_at
        if answer_at is None:
            return []
        while self._held and self._num_bytes < answer_at:
            self._num_bytes += len(self._held.pop(0)["bytes"])
        taken, self._held = self._held, []
        return taken


def answer_entries(job: Job) -> list[Mapping[str, Any]] | None:
    """Return the logprobs of an ended job's answer, None without any."""
    output = job.output or {}
    if output.get("logprobs") is None:
        return None
    reader = answer_reader(job)
    entries = AnswerEntries(reader)
    entries.add(output["logprobs"])
    if reader is not None:
        reader.add(output["text"])
        reader.finish()
    return entries.take()


def made_of_input(job: Job) -> dict[str, Any]:
    """Return the extensions of an answer: what was left out of the input, and the prompt template that it came from."""
    payload = job.payload or {}
    return {name: payload[name] for name in ("truncated", "template") if name in payload}


class ChatAnswer:
    """Builds the chat completion for one job, or for one ``choice`` of it.

    ``shared``: more fields of the answer and of each chunk.
    """

    def __init__(
        self, job: Job, choice: int = 0, *, with_usage: bool = False, shared: Mapping[str, Any] | None = None
    ) -> None:
        self._choice_name = choice_name(job.id, choice)
        self._id = f"chatcmpl-{job.id.removeprefix('job_')}"
        self._created = int(job.created_at.timestamp())
        self._model = f"{job.model}@{job.model_version}"
        self._shared = {**made_of_input(job), **(shared or {})}
        self._with_usage = with_usage
        self._has_begun = False
        self._reader = answer_reader(job)
        self._entries = AnswerEntries(self._reader)

    def full_answer(self, job: Job) -> dict[str, Any]:
        """Return the completion of a succeeded job; raise JobUnanswered for any other."""
        output = answer_of(job)
        has_calls = "tool_calls" in output
        content = output.get("content", None if has_calls else output["text"])
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if "reasoning" in output:
            message["reasoning_content"] = output["reasoning"]
        if has_calls:
            message["tool_calls"] = output["tool_calls"]
        if "annotations" in output:
            message["annotations"] = output["annotations"]
        logprobs = _logprobs(answer_entries(job))
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": output["finish_reason"]}
        return {**self._frame("chat.completion"), "choices": [choice], "usage": usage_of(job)}

    def opening(self) -> list[dict[str, Any]]:
        """Return nothing: the first chunk has text."""
        return []

    def pieces(self, text: str, entries: Entries = ()) -> list[dict[str, Any]]:
        """Return the chunks for the next text, with the logprobs of its tokens if requested.

        Text that could be the start of a tool call or of a mark is held back, with its logprobs.
        """
        if self._reader is None:
            return [self._chunk({"content": text}, None, entries or None)]
        self._entries.add(entries)
        return self._read(self._reader.add(text))

    def _read(self, pieces: Sequence[AnswerPiece]) -> list[dict[str, Any]]:
        return [
            self._chunk(
                self._delta(piece), None, None if isinstance(piece, ReasoningPiece) else self._entries.take() or None
            )
            for piece in pieces
        ]

    def _delta(self, piece: AnswerPiece) -> dict[str, Any]:
        match piece:
            case ReasoningPiece(text):
                return {"reasoning_content": text}
            case ContentPiece(text):
                return {"content": text}
            case CallPiece(index, None, arguments):
                return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}
            case CallPiece(index, name, arguments):
                named = {"id": call_id(self._choice_name, index), "type": "function"}
                return {"tool_calls": [{"index": index, **named, "function": {"name": name, "arguments": arguments}}]}

    def closing(self, job: Job) -> list[dict[str, Any]]:
        """Return the last chunks of a succeeded job; raise JobUnanswered for any other."""
        output = answer_of(job)
        finish_reason = output["finish_reason"]
        chunks = [] if self._reader is None else self._read(self._reader.finish(is_cut=is_cut(job)))
        rest = self._entries.take() or None
        last = {} if self._has_begun else {"content": ""}
        if "annotations" in output:
            last["annotations"] = output["annotations"]
        chunks.append(self._chunk(last, finish_reason, rest))
        if self._with_usage:
            chunks.append({**self._frame("chat.completion.chunk"), "choices": [], "usage": usage_of(job)})
        return chunks

    def _chunk(
        self, delta: dict[str, Any], finish_reason: str | None, entries: Entries | None = None
    ) -> dict[str, Any]:
        if not self._has_begun:
            # Not in a chunk of its own: clients take the first chunk for the first token.
            self._has_begun, delta = True, {"role": "assistant", **delta}
        choice = {"index": 0, "delta": delta, "logprobs": _logprobs(entries), "finish_reason": finish_reason}
        chunk = {**self._frame("chat.completion.chunk"), "choices": [choice]}
        return chunk | {"usage": None} if self._with_usage else chunk

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model, **self._shared}


def _logprobs(entries: Entries | None) -> dict[str, Any] | None:
    return None if entries is None else {"content": entries, "refusal": None}


def usage_of(job: Job) -> dict[str, Any]:
    """Return the token counts of a job."""
    usage = job.usage or {}
    tokens_in, tokens_out = int(usage.get("input_tokens", job.input_tokens)), int(usage.get("output_tokens", 0))
    return {
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
        "prompt_tokens_details": {"cached_tokens": int(usage.get("cached_tokens", 0))},
        "completion_tokens_details": {"reasoning_tokens": int(usage.get("reasoning_tokens", 0))},
    }


NewAnswer = Callable[[Job, int], Answer]
"""Makes the answer of a job's choice with this number."""


def answer_to(job: Job, new_answer: NewAnswer) -> Answer:
    """Return the answer of a job with one choice or several."""
    num_choices = num_choices_of(job)
    return new_answer(job, 0) if num_choices == 1 else ChoicesAnswer(job, num_choices, new_answer)


class ChoicesAnswer:
    """The answer of a job with ``num_choices`` choices."""

    def __init__(self, job: Job, num_choices: int, new_answer: NewAnswer) -> None:
        self._choices = [new_answer(_own(job, number), number) for number in range(num_choices)]

    def full_answer(self, job: Job) -> dict[str, Any]:
        """Return the answer of a succeeded job; raise JobUnanswered for any other."""
        answer_of(job)
        answers = [one.full_answer(_own(job, number)) for number, one in enumerate(self._choices)]
        choices = [{**one["choices"][0], "index": number} for number, one in enumerate(answers)]
        return {**answers[0], "choices": choices}

    def opening(self) -> Sequence[dict[str, Any]]:
        """Return the chunks before the first text."""
        return self._choices[0].opening()

    def pieces(self, text: str, entries: Entries = ()) -> Sequence[dict[str, Any]]:
        """Return the chunks for the next text of the first choice."""
        return self.pieces_of(0, text, entries)

    def pieces_of(self, choice: int, text: str, entries: Entries) -> Sequence[dict[str, Any]]:
        """Return the chunks for the next text of a choice."""
        return [_indexed(chunk, choice) for chunk in self._choices[choice].pieces(text, entries)]

    def closing(self, job: Job) -> Sequence[dict[str, Any]]:
        """Return the last chunks of a succeeded job; raise JobUnanswered for any other."""
        answer_of(job)
        chunks = [
            _indexed(chunk, number)
            for number, one in enumerate(self._choices)
            for chunk in one.closing(_own(job, number))
        ]
        # The last chunk may have the token counts; it comes once.
        return [chunk for chunk in chunks[:-1] if chunk["choices"]] + chunks[-1:]


def _own(job: Job, number: int) -> Job:
    """Return the job as if it had this choice only."""
    return job if job.output is None else replace(job, output=job.output["choices"][number])


def _indexed(chunk: dict[str, Any], number: int) -> dict[str, Any]:
    return {**chunk, "choices": [{**choice, "index": number} for choice in chunk["choices"]]}
