"""Builds the numbered events of a response: a pure function of its job's start, text and end.

    created │ [queued] │ in_progress │ item added │ part added │ delta … │ text, part, item done │ completed
       0         1          1 or 2        + 1          + 2        + 3 …         the next three       the last

``queued`` exists only for background responses. Every client gets the same events with the same numbers, from any
process (``response_output`` explains how), so a client reconnects with just a number. No event is retracted: if a new
attempt's text differs from the sent text, the stream ends with an error.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from producer_api.responses.response_answer import initial_object, response_object, status_of
from producer_api.responses.response_output import Output, OutputItem, last_status
from store.jobs.jobs import Job
from store.jobs.responses import StoredResponse

Event = dict[str, Any]
Entries = Sequence[Mapping[str, Any]]
"""Logprobs of tokens, in the format of ``producer_api.streaming.job_events.FormatLogprobs``."""


class ResponseEventBuilder:
    """Builds the events of one response in order. Each method yields the next events."""

    def __init__(self, job: Job, row: StoredResponse) -> None:
        self._job = job
        self._row = row
        self._next_number = 0
        self._is_in_progress = False
        self._output = Output(job)
        self._open: OutputItem | None = None
        self._entries: list[Mapping[str, Any]] = []

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

    def add_text(self, text: str, entries: Entries = ()) -> Iterator[Event]:
        """Yield the events for the next text, with the logprobs of its tokens."""
        if text:
            yield from self.started()
        self._entries += entries
        for item, new in self._output.add(text):
            yield from self._item_events(item, new)

    def end(self, job: Job, *, is_text_complete: bool) -> Iterator[Event]:
        """Yield the final events. The open items are closed only if all their text was sent."""
        if job.started_at is not None:
            yield from self.started()
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
            self._open = item
            yield self._event("response.output_item.added", output_index=item.index, item=item.as_json("in_progress"))
            if item.call is None:
                empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                yield self._event("response.content_part.added", **_position(item), part=empty)
        if not new:
            return
        if item.call is None:
            entries, self._entries = self._entries, []
            yield self._event("response.output_text.delta", **_position(item), delta=new, logprobs=entries)
        else:
            yield self._event("response.function_call_arguments.delta", **_position(item), delta=new)

    def _close(self, item: OutputItem, status: str) -> Iterator[Event]:
        if item.call is None:
            likely = item.logprobs or []
            yield self._event("response.output_text.done", **_position(item), text=item.text, logprobs=likely)
            yield self._event("response.content_part.done", **_position(item), part=item.content())
        else:
            called = {"name": item.call[1], "arguments": item.text}
            yield self._event("response.function_call_arguments.done", **_position(item), **called)
        yield self._event("response.output_item.done", output_index=item.index, item=item.as_json(status))

    def _event(self, kind: str, **fields: Any) -> Event:
        number, self._next_number = self._next_number, self._next_number + 1
        return {"type": kind, "sequence_number": number, **fields}


def _position(item: OutputItem) -> dict[str, Any]:
    position = {"item_id": item.id, "output_index": item.index}
    return position if item.call is not None else position | {"content_index": 0}
