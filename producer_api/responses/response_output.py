"""Converts the model's text to output items of the Responses API: a pure function, for whole or streamed text.

A client reconnects with an event number and must get exactly the following events, also from another process or after
the loss of a worker or of Redis. The generated deltas cannot be used for that, because a second attempt may split the
same text at other places. So the text is split again, at places that depend only on its characters:

    generated  Hel│lo wor│ld           another attempt   Hello │world
    sent       Hel│lo │wor│ld          sent              Hel│lo │wor│ld
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from producer_api.openai.chat_answer import is_cut
from prompts.tool_calls import CallPiece, ContentPiece, Piece, call_id, reader_for
from store.jobs.jobs import Job
from store.jobs.responses import response_id
from store.schema.job_states import JobState
from store.tasks.generate import GeneratePayload

_CHUNK_BYTES = 3
"""A chunk ends as soon as it has this many bytes of UTF-8, so at most two letters are held back."""

Item = dict[str, Any]


class StableChunker:
    """Splits a text into chunks at places that do not depend on the pieces in which it arrives."""

    def __init__(self) -> None:
        self._held = ""
        self._num_bytes = 0

    def add(self, text: str) -> Iterator[str]:
        """Add the next piece; yield the chunks that it completes."""
        for character in text:
            self._held += character
            self._num_bytes += len(character.encode(errors="surrogatepass"))
            if self._num_bytes >= _CHUNK_BYTES:
                yield from self.rest()

    def rest(self) -> Iterator[str]:
        """Yield the rest at the end of the text."""
        if self._held:
            held, self._held, self._num_bytes = self._held, "", 0
            yield held


@dataclass(slots=True)
class OutputItem:
    """A message with its ``text``, or, with a ``call``, a function call where ``text`` is the arguments."""

    id: str
    index: int
    call: tuple[str, str] | None = None
    parts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.parts)

    def content(self) -> Item:
        """Return the only content part of a message."""
        likely = {} if self.logprobs is None else {"logprobs": self.logprobs}
        return {"type": "output_text", "text": self.text, "annotations": [], **likely}

    def as_json(self, status: str) -> Item:
        """Return the item as JSON. An item in progress has no content."""
        if self.call is not None:
            call_id, name = self.call
            shown = {"id": self.id, "type": "function_call", "status": status, "call_id": call_id, "name": name}
            return {**shown, "arguments": self.text}
        content = [] if status == "in_progress" else [self.content()]
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}


class Output:
    """The items of one answer: each ends where the next starts."""

    def __init__(self, job: Job) -> None:
        self._job_id = job.id
        self._chunker = StableChunker()
        has_tools = job.payload.get("tool_style") is not None
        self._calls = reader_for(GeneratePayload.model_validate(job.payload)) if has_tools else None
        self.items: list[OutputItem] = []

    def add(self, text: str) -> Iterator[tuple[OutputItem, str]]:
        """Add text; yield (item, its new text). A new item is first yielded with an empty text."""
        for chunk in self._chunker.add(text):
            yield from self._read(chunk)

    def finish(self, job: Job) -> Iterator[tuple[OutputItem, str]]:
        """Yield the held-back text at the end of the job. An empty answer is one empty message."""
        for chunk in self._chunker.rest():
            yield from self._read(chunk)
        for piece in () if self._calls is None else self._calls.finish(is_cut=is_cut(job)):
            yield from self._take(piece)
        if job.state is JobState.SUCCEEDED and not self.items:
            yield self._begin_message(), ""
        if len(self.items) == 1 and self.items[0].call is None:
            self.items[0].logprobs = (job.output or {}).get("logprobs")

    def _read(self, chunk: str) -> Iterator[tuple[OutputItem, str]]:
        for piece in (ContentPiece(chunk),) if self._calls is None else self._calls.add(chunk):
            yield from self._take(piece)

    def _take(self, piece: Piece) -> Iterator[tuple[OutputItem, str]]:
        match piece:
            case ContentPiece(text):
                yield from self._add_content(text)
            case CallPiece(index, name, arguments):
                if name is not None:
                    yield self._begin("fc", (call_id(self._job_id, index), name)), ""
                if arguments:
                    self.items[-1].parts.append(arguments)
                    yield self.items[-1], arguments

    def _add_content(self, text: str) -> Iterator[tuple[OutputItem, str]]:
        if not self.items or self.items[-1].call is not None:
            yield self._begin_message(), ""
        item = self.items[-1]
        item.parts.append(text)
        yield item, text

    def _begin_message(self) -> OutputItem:
        return self._begin("msg", None)

    def _begin(self, kind: str, call: tuple[str, str] | None) -> OutputItem:
        number = len(self.items)
        item_id = f"{kind}_{self._job_id.removeprefix('job_')}" + (f"_{number}" if number else "")
        self.items.append(OutputItem(item_id, number, call))
        return self.items[-1]


def output_items(job: Job) -> list[Item]:
    """Return the items of an ended job; those of an unfinished answer are partial."""
    if job.output is None:
        return []
    output = Output(job)
    for _ in (*output.add(job.output["text"]), *output.finish(job)):
        pass
    return [item.as_json("completed") for item in output.items[:-1]] + [
        item.as_json(last_status(job)) for item in output.items[-1:]
    ]


_ITEM_ID = re.compile(r"[a-z]{2,4}_([0-9a-f]{32})(?:_[0-9]+)?")


def response_of(item_id: str) -> str | None:
    """Return the id of the response that an item of an answer belongs to, None for any other id."""
    found = _ITEM_ID.fullmatch(item_id)
    return None if found is None else response_id(f"job_{found[1]}")


def last_status(job: Job) -> str:
    """Return the status of the last item of an ended job: only the last can be incomplete."""
    return "incomplete" if is_cut(job) else "completed"
