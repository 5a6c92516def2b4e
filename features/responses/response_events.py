"""Builds the numbered events of a response: a pure function of its job's start, text and end.

    created │ [queued] │ in_progress │ item added │ part added │ delta … │ text, part, item done │ completed
       0         1          1 or 2        + 1          + 2        + 3 …         the next three       the last

``queued`` exists only for background responses. A search in files has its five events after ``in_progress``, and
an event for each annotation comes before the text is done. Every client gets the same events with the same numbers,
from any process (``response_output`` explains how), so a client reconnects with just a number. No event is retracted:
if a new attempt's text differs from the sent text, the stream ends with an error.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from headrace.features.openai.chat_answer import AnswerEntries
from headrace.features.responses.response_answer import initial_object, response_object, status_of
from headrace.features.responses.response_output import ItemKind, Output, OutputItem, last_status
from headrace.features.responses.stored_responses import StoredResponse
from headrace.producer_api.streaming.answers import Entries
from headrace.producer_api.streaming.turns import CallEnded, TurnEnded
from headrace.store.jobs.jobs import Job

Event = dict[str, Any]


class ResponseEventBuilder:
    """Builds the events of one response in order. Each method yields the next events."""

    def __init__(self, job: Job, row: StoredResponse) -> None:
        self._job = job
        self._row = replace(row, turns=())
        self._next_number = 0
        self._is_in_progress = False
        self._has_searched = False
        self._output = Output(job, row)
        self._open: OutputItem | None = None
        self._entries = AnswerEntries(self._output.reader)

    def opening(self) -> Iterator[Event]:
        """Yield the creation events. A foreground response is in progress immediately."""
        status = "queued" if self._row.is_background else "in_progress"
        yield self._event("response.created", response=initial_object(self._job, self._row, status))
        if self._row.is_background:
            yield self._event("response.queued", response=initial_object(self._job, self._row, status))
        else:
            yield from self.started()

    def started(self) -> Iterator[Event]:
        """Yield ``in_progress``, once."""
        if not self._is_in_progress:
            self._is_in_progress = True
            response = initial_object(self._job, self._row, "in_progress")
            yield self._event("response.in_progress", response=response)
            if (search := self._output.search) is not None:
                yield self._event("response.output_item.added", output_index=0, item=search.as_json("in_progress"))
                for status in ("in_progress", "searching"):
                    yield self._event(f"{_SEARCH}.{status}", item_id=search.id, output_index=0)
            for listed in self._output.lists:
                place = {"item_id": listed.id, "output_index": listed.index}
                empty = {**listed.as_json("in_progress"), "tools": []}
                yield self._event("response.output_item.added", output_index=listed.index, item=empty)
                for status in ("in_progress", "completed"):
                    yield self._event(f"response.mcp_list_tools.{status}", **place)
                done = listed.as_json("completed")
                yield self._event("response.output_item.done", output_index=listed.index, item=done)
            for item in self._output.first:
                yield from self._call_begun(item)

    def turn_ended(self, turn: TurnEnded) -> Iterator[Event]:
        """Yield the end of a turn, all of whose text was added, and the beginnings of its calls."""
        yield from self.started()
        for item, new in self._output.end_turn(turn):
            yield from self._item_events(item, new)
        if self._open is not None:
            yield from self._close(self._open, "completed")
            self._open = None
        self._row = replace(self._row, turns=(*self._row.turns, turn))
        for call in turn.calls:
            yield from self._call_begun(self._output.begin_call(call))

    def _call_begun(self, item: OutputItem) -> Iterator[Event]:
        place, arguments = {"item_id": item.id, "output_index": item.index}, item.call["arguments"]
        begun = {**item.as_json("in_progress"), "arguments": "", "error": None, "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=item.index, item=begun)
        yield self._event(f"{_CALL}.in_progress", **place)
        yield self._event(f"{_CALL}_arguments.delta", **place, delta=arguments)
        yield self._event(f"{_CALL}_arguments.done", **place, arguments=arguments)

    def call_ended(self, ended: CallEnded) -> Iterator[Event]:
        """Yield the end of a call that the server has made."""
        yield from self.started()
        self._row = replace(self._row, turns=(*self._row.turns, ended))
        yield from self._call_over(self._output.end_call(ended))

    def _call_over(self, item: OutputItem) -> Iterator[Event]:
        shown = item.as_json("completed")
        yield self._event(f"{_CALL}.{shown['status']}", item_id=item.id, output_index=item.index)
        yield self._event("response.output_item.done", output_index=item.index, item=shown)

    def set_found(self, passages: Sequence[Mapping[str, Any]]) -> None:
        """Show the passages that the search found in the events after this."""
        self._row = replace(self._row, found=passages)
        self._output.set_found(passages)

    def searched(self) -> Iterator[Event]:
        """Yield the end of the search in files, once."""
        search = self._output.search
        if search is None or self._has_searched:
            return
        yield from self.started()
        self._has_searched = True
        yield self._event(f"{_SEARCH}.completed", item_id=search.id, output_index=0)
        yield self._event("response.output_item.done", output_index=0, item=search.as_json("completed"))

    def add_text(self, text: str, entries: Entries = ()) -> Iterator[Event]:
        """Yield the events for the next text, with the logprobs of its tokens."""
        if text:
            yield from self.started()
            yield from self.searched()
        self._entries.add(entries)
        for item, new in self._output.add(text):
            yield from self._item_events(item, new)

    def end(self, job: Job, *, is_text_complete: bool) -> Iterator[Event]:
        """Yield the final events. The open items are closed only if all their text was sent."""
        if job.started_at is not None:
            yield from self.started()
        if job.output is not None:
            yield from self.searched()
        if is_text_complete and job.output is not None:
            for item, new in self._output.finish(job):
                yield from self._item_events(item, new)
            if self._open is not None:
                yield from self._close(self._open, last_status(job))
        kind = f"response.{status_of(job, self._row)}"
        yield self._event(kind, response=response_object(job, self._row))

    def _item_events(self, item: OutputItem, new: str) -> Iterator[Event]:
        if item is not self._open:
            if self._open is not None:
                yield from self._close(self._open, "completed")
            if item.kind is ItemKind.CALLED:
                self._open = None
                yield from (*self._call_begun(item), *self._call_over(item))
                return
            self._open = item
            yield self._event("response.output_item.added", output_index=item.index, item=item.as_json("in_progress"))
            if item.kind is not ItemKind.CALL and item.kind is not ItemKind.ASKED:
                empty = {**item.part(), "text": ""} | ({"logprobs": []} if item.kind is ItemKind.MESSAGE else {})
                yield self._event(f"{_PART[item.kind]}.added", **_position(item), part=empty)
        if not new:
            return
        likely: dict[str, Any] = {"logprobs": self._entries.take()} if item.kind is ItemKind.MESSAGE else {}
        yield self._event(f"{_TEXT[item.kind]}.delta", **_position(item), delta=new, **likely)

    def _close(self, item: OutputItem, status: str) -> Iterator[Event]:
        done = f"{_TEXT.get(item.kind)}.done"
        for number, annotation in enumerate(item.annotations):
            place = {**_position(item), "annotation_index": number}
            yield self._event("response.output_text.annotation.added", **place, annotation=annotation)
        if item.kind is ItemKind.CALL:
            yield self._event(done, **_position(item), name=item.call["name"], arguments=item.text)
        elif item.kind is not ItemKind.ASKED:
            likely = {"logprobs": item.logprobs or []} if item.kind is ItemKind.MESSAGE else {}
            yield self._event(done, **_position(item), text=item.text, **likely)
            yield self._event(f"{_PART[item.kind]}.done", **_position(item), part=item.part())
        yield self._event("response.output_item.done", output_index=item.index, item=item.as_json(status))

    def _event(self, kind: str, **fields: Any) -> Event:
        number, self._next_number = self._next_number, self._next_number + 1
        return {"type": kind, "sequence_number": number, **fields}


_SEARCH = "response.file_search_call"
_CALL = "response.mcp_call"
_PART = {
    ItemKind.MESSAGE: "response.content_part",
    ItemKind.REASONING: "response.content_part",
    ItemKind.SUMMARIZED: "response.reasoning_summary_part",
}
_TEXT = {
    ItemKind.MESSAGE: "response.output_text",
    ItemKind.CALL: "response.function_call_arguments",
    ItemKind.REASONING: "response.reasoning_text",
    ItemKind.SUMMARIZED: "response.reasoning_summary_text",
}


def _position(item: OutputItem) -> dict[str, Any]:
    """Return the fields that say where the text of an item is."""
    position: dict[str, Any] = {"item_id": item.id, "output_index": item.index}
    if item.kind is ItemKind.CALL:
        return position
    return position | {"summary_index" if item.kind is ItemKind.SUMMARIZED else "content_index": 0}
