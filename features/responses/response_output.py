"""Converts the model's text to output items of the Responses API: a pure function, for whole or streamed text.

A client reconnects with an event number and must get exactly the following events, also from another process or after
the loss of a worker or of Redis. The generated deltas cannot be used for that, because a second attempt may split the
same text at other places. So the text is split again, at places that depend only on its characters:

    generated  Hel│lo wor│ld           another attempt   Hello │world
    sent       Hel│lo │wor│ld          sent              Hel│lo │wor│ld
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from headrace.features.openai.chat_answer import answer_entries, answer_reader
from headrace.features.openai.turns_answer import TurnReaders
from headrace.features.responses.answered_calls import ANSWERED
from headrace.features.responses.file_searches import question_of, shown_results
from headrace.features.responses.mcp_approvals import ASKED
from headrace.features.responses.mcp_items import begun_call, call_result, last_calls, shown_list
from headrace.features.responses.mcp_tools import LISTED
from headrace.features.responses.response_tools import name_fields
from headrace.features.responses.stored_responses import StoredResponse
from headrace.producer_api.streaming.answers import is_cut
from headrace.producer_api.streaming.turns import CallEnded, TurnCall, TurnEnded, first_calls, has_turns
from headrace.prompts.answer_reader import AnswerPiece, ReasoningPiece
from headrace.prompts.tool_calls import CallPiece, ContentPiece, call_id
from headrace.store.jobs.jobs import Job
from headrace.store.jobs.responses import response_id
from headrace.store.schema.job_states import JobState

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


class ItemKind(StrEnum):
    """The kind of an item; its value is the prefix of its id."""

    MESSAGE = "msg"
    CALL = "fc"
    REASONING = "rs"
    SUMMARIZED = "rs_summary"  # reasoning that is shown as its own summary
    SEARCH = "fs"
    LIST = "mcpl"  # the tools of a server of MCP
    CALLED = "mcp"  # a call that the server makes
    ASKED = "mcpr"  # a call that needs an approval


_OF_MCP = {ItemKind.LIST: "mcp_list_tools", ItemKind.CALLED: "mcp_call", ItemKind.ASKED: ASKED}


@dataclass(slots=True)
class OutputItem:
    """A message or reasoning with ``text``; a ``call``, whose ``text`` is the arguments; or an item of the server.

    ``call`` has the fields of its id and its function, or those of a search, a list of tools or a call of the server.
    ``annotations`` are those of a message.
    """

    id: str
    index: int
    kind: ItemKind
    call: Item = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    logprobs: Sequence[Mapping[str, Any]] | None = None
    annotations: Sequence[Mapping[str, Any]] = ()

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.parts)

    @property
    def part_type(self) -> str:
        """The type of the only part of a message or of reasoning."""
        return {ItemKind.REASONING: "reasoning_text", ItemKind.SUMMARIZED: "summary_text"}.get(self.kind, "output_text")

    def part(self) -> Item:
        """Return the only part of a message or of reasoning."""
        if self.kind is not ItemKind.MESSAGE:
            return {"type": self.part_type, "text": self.text}
        likely = {} if self.logprobs is None else {"logprobs": self.logprobs}
        return {"type": "output_text", "text": self.text, "annotations": list(self.annotations), **likely}

    def as_json(self, status: str) -> Item:
        """Return the item as JSON. An item in progress has no content."""
        if self.kind is ItemKind.SEARCH:
            return {"id": self.id, "type": "file_search_call", "status": status, **self.call}
        if self.kind in _OF_MCP:
            return {"id": self.id, "type": _OF_MCP[self.kind], **self.call}
        if self.kind is ItemKind.CALL:
            return {"id": self.id, "type": "function_call", "status": status, **self.call, "arguments": self.text}
        parts = [] if status == "in_progress" else [self.part()]
        if self.kind is ItemKind.MESSAGE:
            return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": parts}
        shown: Item = {"id": self.id, "type": "reasoning", "status": status, "encrypted_content": None}
        is_summary = self.kind is ItemKind.SUMMARIZED
        return {**shown, "summary": parts if is_summary else [], "content": [] if is_summary else parts}


class Output:
    """The items of one answer: each ends where the next starts."""

    def __init__(self, job: Job, row: StoredResponse | None) -> None:
        self._job_id = job.id
        self._chunker = StableChunker()
        self._readers = TurnReaders(job) if has_turns(job) else None
        self.reader = answer_reader(job) if self._readers is None else self._readers.reader()
        shown = {} if row is None else row.request
        self._tools = shown.get("tools") or ()
        is_summary = (shown.get("reasoning") or {}).get("summary") is not None
        self._reasoning_kind = ItemKind.SUMMARIZED if is_summary else ItemKind.REASONING
        self.items: list[OutputItem] = []
        self.search: OutputItem | None = None
        question = question_of(job)
        if question is not None:
            self.search = self._begin(ItemKind.SEARCH, {"queries": [question], "results": None})
            self.set_found(None if row is None else row.found)
        self._listed: Sequence[Mapping[str, Any]] = shown.get(LISTED) or ()
        self.lists = [self._begin(ItemKind.LIST, shown_list(one)) for one in self._listed]
        answered = shown.get(ANSWERED) or ()
        self.first = [self.begin_call(call) for call in (first_calls(job) if self._readers else ())]
        for item, approval_id in zip(self.first, answered, strict=False):
            item.call["approval_request_id"] = approval_id
        self._num_before = len(self.items)

    def end_turn(self, turn: TurnEnded) -> Iterator[tuple[OutputItem, str]]:
        """Yield the held-back text of a turn that has ended with calls; more of its text is not added."""
        for chunk in self._chunker.rest():
            yield from self._read(chunk)
        for piece in () if self.reader is None else self.reader.finish():
            yield from self._take(piece)
        if self._readers is not None:
            self._readers.go_on(turn.output)
            self.reader = self._readers.reader()

    def begin_call(self, call: TurnCall) -> OutputItem:
        """Return the item of a call that the server makes."""
        item = self._begin(ItemKind.CALLED, begun_call(call, self._listed))
        self._num_before = len(self.items)
        return item

    def end_call(self, ended: CallEnded) -> OutputItem:
        """Return the item of a call that has returned."""
        called = [item for item in self.items if item.kind is ItemKind.CALLED]
        item = called[ended.call.number]
        item.call |= call_result(ended)
        return item

    def set_found(self, passages: Sequence[Mapping[str, Any]] | None) -> None:
        """Show the passages that the search found; None: it is not shown what was found."""
        if self.search is not None and passages is not None:
            self.search.call["results"] = shown_results(passages)

    def add(self, text: str) -> Iterator[tuple[OutputItem, str]]:
        """Add text; yield (item, its new text). A new item is first yielded with an empty text."""
        for chunk in self._chunker.add(text):
            yield from self._read(chunk)

    def finish(self, job: Job) -> Iterator[tuple[OutputItem, str]]:
        """Yield the held-back text at the end of the job. An empty answer is one empty message."""
        for chunk in self._chunker.rest():
            yield from self._read(chunk)
        for piece in () if self.reader is None else self.reader.finish(is_cut=is_cut(job)):
            yield from self._take(piece)
        failed, asked = ([], []) if self._readers is None else last_calls(job, self._readers.left, self._listed)
        if job.state is JobState.SUCCEEDED and len(self.items) == self._num_before and not asked:
            yield self._begin(ItemKind.MESSAGE), ""
        others = [item for item in self.items if item.kind in (ItemKind.MESSAGE, ItemKind.CALL)]
        if len(others) == 1 and others[0].kind is ItemKind.MESSAGE:
            others[0].logprobs = answer_entries(job)
            others[0].annotations = (job.output or {}).get("annotations") or ()
        for kind, fields in (*((ItemKind.CALLED, one) for one in failed), *((ItemKind.ASKED, one) for one in asked)):
            yield self._begin(kind, fields), ""

    def _read(self, chunk: str) -> Iterator[tuple[OutputItem, str]]:
        for piece in (ContentPiece(chunk),) if self.reader is None else self.reader.add(chunk):
            yield from self._take(piece)

    def _take(self, piece: AnswerPiece) -> Iterator[tuple[OutputItem, str]]:
        match piece:
            case ReasoningPiece(text):
                yield from self._add_text(self._reasoning_kind, text)
            case ContentPiece(text):
                yield from self._add_text(ItemKind.MESSAGE, text)
            case CallPiece() if self._readers is not None:
                return  # the server makes it: its item comes with the end of the turn
            case CallPiece(index, name, arguments):
                if name is not None:
                    called = {"call_id": call_id(self._job_id, index), **name_fields(name, self._tools)}
                    yield self._begin(ItemKind.CALL, called), ""
                if arguments:
                    self.items[-1].parts.append(arguments)
                    yield self.items[-1], arguments

    def _add_text(self, kind: ItemKind, text: str) -> Iterator[tuple[OutputItem, str]]:
        if not self.items or self.items[-1].kind is not kind:
            yield self._begin(kind), ""
        item = self.items[-1]
        item.parts.append(text)
        yield item, text

    def _begin(self, kind: ItemKind, call: Item | None = None) -> OutputItem:
        number = len(self.items)
        prefix = kind.partition("_")[0]
        item_id = f"{prefix}_{self._job_id.removeprefix('job_')}" + (f"_{number}" if number else "")
        self.items.append(OutputItem(item_id, number, kind, call or {}))
        return self.items[-1]


def output_items(job: Job, row: StoredResponse | None = None) -> list[Item]:
    """Return the items of an ended job; those of an unfinished answer are partial.

    ``row`` has the namespaces of tools and the turns before the answer, and says if reasoning is its own summary.
    """
    if job.output is None:
        return []
    output = Output(job, row)
    for event in () if row is None else row.turns:
        if isinstance(event, CallEnded):
            output.end_call(event)
            continue
        for _ in (*output.add(event.output["text"]), *output.end_turn(event)):
            pass
        for call in event.calls:
            output.begin_call(call)
    for _ in (*output.add(job.output["text"]), *output.finish(job)):
        pass
    last = len(output.items) - 1
    return [
        item.as_json(last_status(job) if index == last and item is not output.search else "completed")
        for index, item in enumerate(output.items)
    ]


_ITEM_ID = re.compile(r"[a-z]{2,4}_([0-9a-f]{32})(?:_[0-9]+)?")


def response_of(item_id: str) -> str | None:
    """Return the id of the response that an item of an answer belongs to, None for any other id."""
    found = _ITEM_ID.fullmatch(item_id)
    return None if found is None else response_id(f"job_{found[1]}")


def last_status(job: Job) -> str:
    """Return the status of the last item of an ended job: only the last can be incomplete."""
    return "incomplete" if is_cut(job) else "completed"
