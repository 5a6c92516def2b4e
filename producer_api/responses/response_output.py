"""What a model wrote, as output items of the Responses API: a pure function of its text, whole or as it comes.

An event of a stream is known by its number alone, and whoever comes back with one must get exactly what follows it:
from another process, after a worker was lost, after Redis was. The pieces in which a text was computed are no base for
that, since a second attempt may cut the same text elsewhere. So the text is cut anew, where only its characters say:

    computed   Hel│lo wor│ld           another attempt   Hello │world
    sent       Hel│lo │wor│ld          sent              Hel│lo │wor│ld
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prompts.tool_calls import CallPiece, ContentPiece, Piece, call_id, reader_for
from store.jobs.jobs import Job
from store.schema.job_states import JobState
from store.tasks.generate import GeneratePayload

_CUT_BYTES = 3
"""A cut is as short as it can be with so many bytes of UTF-8: what is held back meanwhile is two letters at most."""

Item = dict[str, Any]


class Cutter:
    """Cuts a text that comes in any pieces, always at the same places."""

    def __init__(self) -> None:
        self._held = ""
        self._num_bytes = 0

    def add(self, text: str) -> Iterator[str]:
        """Take the next piece and yield the cuts that it completes."""
        for character in text:
            self._held += character
            self._num_bytes += len(character.encode(errors="surrogatepass"))
            if self._num_bytes >= _CUT_BYTES:
                yield from self.rest()

    def rest(self) -> Iterator[str]:
        """Yield what is held back: the text is complete."""
        if self._held:
            held, self._held, self._num_bytes = self._held, "", 0
            yield held


@dataclass(slots=True)
class OutputItem:
    """A message, or a call of a function if it has a ``call``; ``text`` is what it says, or its arguments."""

    id: str
    index: int
    call: tuple[str, str] | None = None
    parts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.parts)

    def content(self) -> Item:
        """Return a message's one part."""
        likely = {} if self.logprobs is None else {"logprobs": self.logprobs}
        return {"type": "output_text", "text": self.text, "annotations": [], **likely}

    def as_json(self, status: str) -> Item:
        """Return the item as it is shown; one that is just begun is empty."""
        if self.call is not None:
            call_id, name = self.call
            shown = {"id": self.id, "type": "function_call", "status": status, "call_id": call_id, "name": name}
            return {**shown, "arguments": self.text}
        content = [] if status == "in_progress" else [self.content()]
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}


class Output:
    """The items of one answer: each ends where the next begins."""

    def __init__(self, job: Job) -> None:
        self._job_id = job.id
        self._cutter = Cutter()
        has_tools = job.payload.get("tool_style") is not None
        self._calls = reader_for(GeneratePayload.model_validate(job.payload)) if has_tools else None
        self.items: list[OutputItem] = []

    def add(self, text: str) -> Iterator[tuple[OutputItem, str]]:
        """Take the next text; yield an item and what is new of it, for an item that begins first an empty text."""
        for cut in self._cutter.add(text):
            yield from self._read(cut)

    def finish(self, job: Job) -> Iterator[tuple[OutputItem, str]]:
        """Yield what was held back when the job ended; an answer that says nothing at all is a message of nothing."""
        for cut in self._cutter.rest():
            yield from self._read(cut)
        for piece in () if self._calls is None else self._calls.finish():
            yield from self._take(piece)
        if job.state is JobState.SUCCEEDED and not self.items:
            yield self._begin_message(), ""
        if len(self.items) == 1 and self.items[0].call is None:
            self.items[0].logprobs = (job.output or {}).get("logprobs")

    def _read(self, cut: str) -> Iterator[tuple[OutputItem, str]]:
        for piece in (ContentPiece(cut),) if self._calls is None else self._calls.add(cut):
            yield from self._take(piece)

    def _take(self, piece: Piece) -> Iterator[tuple[OutputItem, str]]:
        match piece:
            case ContentPiece(text):
                yield from self._say(text)
            case CallPiece(index, name, arguments):
                if name is not None:
                    yield self._begin("fc", (call_id(self._job_id, index), name)), ""
                if arguments:
                    self.items[-1].parts.append(arguments)
                    yield self.items[-1], arguments

    def _say(self, text: str) -> Iterator[tuple[OutputItem, str]]:
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
    """Return the items of a job that has ended; those of one that did not answer end where it was cut off."""
    if job.output is None:
        return []
    output = Output(job)
    for _ in (*output.add(job.output["text"]), *output.finish(job)):
        pass
    return [item.as_json("completed") for item in output.items[:-1]] + [
        item.as_json(last_status(job)) for item in output.items[-1:]
    ]


def last_status(job: Job) -> str:
    """Return the status of the last item of a job that has ended: no other can have been cut off."""
    return "completed" if (job.output or {}).get("finish_reason") in ("stop", "tool_calls") else "incomplete"
