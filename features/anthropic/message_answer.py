"""Builds the answers of the Messages API, whole and as the events of a stream, from a job. No HTTP and no I/O.

    message_start
    for each block   content_block_start, content_block_delta …, content_block_stop
    message_delta    why the answer ended, and the final token counts
    message_stop

A whole answer is read by the same code as a stream, so both have the same blocks however the text was cut into pieces.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from headrace.features.openai.chat_answer import answer_reader, made_of_input
from headrace.producer_api.streaming.answers import Entries, answer_of, is_cut
from headrace.prompts.answer_reader import AnswerPiece, ReasoningPiece
from headrace.prompts.tool_calls import CallPiece, ContentPiece, call_id
from headrace.store.jobs.jobs import Job
from headrace.store.payloads.job_payload import ServiceClass

Event = dict[str, Any]

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_TIERS = {ServiceClass.INTERACTIVE: "priority", ServiceClass.STANDARD: "standard", ServiceClass.BATCH: "batch"}


@dataclass
class Block:
    """A block of the answer: a text, thinking, or, with a ``tool``, a tool use where the parts are JSON of its input.

    ``signature`` is thinking's. Clients send it back; here nothing reads it, because the text itself is sent back too.
    """

    tool: tuple[str, str] | None = None
    signature: str | None = None
    parts: list[str] = field(default_factory=list)

    def as_json(self, text: str, *, is_whole: bool = True) -> dict[str, Any]:
        """Return the block with this text; ``is_whole``: not at its beginning."""
        if self.signature is not None:
            return {"type": "thinking", "thinking": text, "signature": self.signature if is_whole else ""}
        if self.tool is None:
            return {"type": "text", "text": text}
        tool_use_id, name = self.tool
        return {"type": "tool_use", "id": tool_use_id, "name": name, "input": input_of(text)}

    def delta(self, text: str) -> dict[str, Any]:
        """Return more of the block's text as a delta of a stream."""
        if self.signature is not None:
            return {"type": "thinking_delta", "thinking": text}
        if self.tool is None:
            return {"type": "text_delta", "text": text}
        return {"type": "input_json_delta", "partial_json": text}


def input_of(text: str) -> dict[str, Any]:
    """Return the input of a tool use. One that was cut at the token limit has what is complete of it."""
    try:
        found = from_json(text, allow_partial=True)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class MessageAnswer:
    """Builds the message of one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._reader = answer_reader(job)
        self._blocks: list[Block] = []

    def full_answer(self, job: Job) -> dict[str, Any]:
        """Return the message of a succeeded job; raise JobUnanswered for any other."""
        output = answer_of(job)
        for _ in (*self.pieces(output["text"]), *self._rest(job)):
            pass
        content = [block.as_json("".join(block.parts)) for block in self._blocks]
        return {**self._message(), "content": content, **_ending(output), "usage": _usage(job)}

    def opening(self) -> list[Event]:
        """Return the event that begins the stream. What was found in a prefix cache is not known yet."""
        return [{"type": "message_start", "message": {**self._message(), "usage": _usage(self._job)}}]

    def pieces(self, text: str, entries: Entries = ()) -> list[Event]:
        """Return the events for the next text. Text that may begin a tool use is held back."""
        new = [ContentPiece(text)] if self._reader is None else self._reader.add(text)
        return list(self._read(new))

    def closing(self, job: Job) -> list[Event]:
        """Return the last events of a succeeded job; raise JobUnanswered for any other."""
        ending = _ending(answer_of(job))
        last = {"type": "message_delta", "delta": ending, "usage": _counts(job)}
        return [*self._rest(job), *self._stop(), last, {"type": "message_stop"}]

    def _rest(self, job: Job) -> Iterator[Event]:
        yield from () if self._reader is None else self._read(self._reader.finish(is_cut=is_cut(job)))

    def _read(self, pieces: Iterable[AnswerPiece]) -> Iterator[Event]:
        for piece in pieces:
            match piece:
                case ReasoningPiece(text):
                    if not self._blocks or self._blocks[-1].tool is not None:
                        yield from self._begin(Block(signature=f"sig_{self._job.id.removeprefix('job_')}"))
                    yield from self._add(text)
                case ContentPiece(text):
                    last = self._blocks[-1] if self._blocks else None
                    if last is None or last.tool is not None or last.signature is not None:
                        # The reader puts a line end before text that follows a call; here it is a block of its own.
                        text = text.removeprefix("\n") if last is not None else text
                        yield from self._begin(Block()) if text else ()
                    yield from self._add(text)
                case CallPiece(index, name, arguments):
                    if name is not None:
                        tool_use_id = call_id(self._job.id, index).replace("call_", "toolu_", 1)
                        yield from self._begin(Block((tool_use_id, name)))
                    yield from self._add(arguments)

    def _begin(self, block: Block) -> Iterator[Event]:
        yield from self._stop()
        self._blocks.append(block)
        yield {
            "type": "content_block_start",
            "index": len(self._blocks) - 1,
            "content_block": block.as_json("", is_whole=False),
        }

    def _add(self, text: str) -> Iterator[Event]:
        if text:
            block = self._blocks[-1]
            block.parts.append(text)
            yield {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": block.delta(text)}

    def _stop(self) -> Iterator[Event]:
        if self._blocks:
            index, signature = len(self._blocks) - 1, self._blocks[-1].signature
            if signature is not None:
                delta = {"type": "signature_delta", "signature": signature}
                yield {"type": "content_block_delta", "index": index, "delta": delta}
            yield {"type": "content_block_stop", "index": index}

    def _message(self) -> dict[str, Any]:
        job = self._job
        return {
            "id": f"msg_{job.id.removeprefix('job_')}",
            "type": "message",
            "role": "assistant",
            "model": f"{job.model}@{job.model_version}",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            **made_of_input(job),
        }


def _ending(output: dict[str, Any]) -> dict[str, Any]:
    """Return why the answer ended."""
    stop_text = output.get("stop_text") if output["finish_reason"] == "stop" else None
    reason = "stop_sequence" if stop_text is not None else _STOP_REASONS[output["finish_reason"]]
    return {"stop_reason": reason, "stop_sequence": stop_text}


def _counts(job: Job) -> dict[str, int]:
    """Return the token counts. Tokens found in a prefix cache are not in ``input_tokens``."""
    usage = job.usage or {}
    cached = int(usage.get("cached_tokens", 0))
    return {
        "input_tokens": int(usage.get("input_tokens", job.input_tokens)) - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": int(usage.get("output_tokens", 0)),
    }


def _usage(job: Job) -> dict[str, Any]:
    return {**_counts(job), "service_tier": _TIERS[job.service_class]}
