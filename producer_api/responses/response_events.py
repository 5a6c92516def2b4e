"""The events of a response, numbered: a pure function of its job's beginning, its text and its end.

    created │ [queued] │ in_progress │ item added │ part added │ delta … │ text, part, item done │ completed
       0         1          1 or 2        + 1          + 2        + 3 …         the next three       the last

``queued`` is said of background responses only. Whoever reads, wherever and how often, gets the same events under the
same numbers (``response_output`` says why), so a number is all that a reader needs to come back with. Nothing is ever
taken back: an attempt that says something else than what was sent ends a stream with an error.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from producer_api.responses.response_answer import begun_object, response_object, status_of
from producer_api.responses.response_output import Output, OutputItem, last_status
from store.jobs.jobs import Job
from store.jobs.responses import StoredResponse

Event = dict[str, Any]
Entries = Sequence[Mapping[str, Any]]
"""Logprobs of tokens, as ``producer_api.streaming.logprob_format`` writes them."""


class Narrator:
    """Tells one response from its beginning. Each method yields the events that follow."""

    def __init__(self, job: Job, row: StoredResponse) -> None:
        self._job = job
        self._row = row
        self._num_told = 0
        self._is_in_progress = False
        self._output = Output(job)
        self._open: OutputItem | None = None
        self._entries: list[Mapping[str, Any]] = []

    def opening(self) -> Iterator[Event]:
        """Tell that there is a response. One that somebody waits for is in progress at once."""
        status = "queued" if self._row.is_background else "in_progress"
        yield self._event("response.created", response=begun_object(self._job, self._row, status))
        if self._row.is_background:
            yield self._event("response.queued", response=begun_object(self._job, self._row, status))
        else:
            yield from self.started()

    def started(self) -> Iterator[Event]:
        """Tell that it is worked on, once."""
        if not self._is_in_progress:
            self._is_in_progress = True
            response = begun_object(self._job, self._row, "in_progress")
            yield self._event("response.in_progress", response=response)

    def say(self, text: str, entries: Entries = ()) -> Iterator[Event]:
        """Tell the next text, with the logprobs of its tokens."""
        if text:
            yield from self.started()
        self._entries += entries
        for item, new in self._output.add(text):
            yield from self._said(item, new)

    def end(self, job: Job, *, is_told: bool) -> Iterator[Event]:
        """Tell the end: of the items too, if what was told of them ``is_told`` to their end."""
        if job.started_at is not None:
            yield from self.started()
        if is_told and job.output is not None:
            for item, new in self._output.finish(job):
                yield from self._said(item, new)
            if self._open is not None:
                yield from self._close(self._open, last_status(job))
        kind = f"response.{status_of(job, self._row)}"
        yield self._event(kind, response=response_object(job, self._row))

    def _said(self, item: OutputItem, new: str) -> Iterator[Event]:
        if item is not self._open:
            if self._open is not None:
                yield from self._close(self._open, "completed")
            self._open = item
            yield self._event("response.output_item.added", output_index=item.index, item=item.as_json("in_progress"))
            if item.call is None:
                empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                yield self._event("response.content_part.added", **_place(item), part=empty)
        if not new:
            return
        if item.call is None:
            entries, self._entries = self._entries, []
            yield self._event("response.output_text.delta", **_place(item), delta=new, logprobs=entries)
        else:
            yield self._event("response.function_call_arguments.delta", **_place(item), delta=new)

    def _close(self, item: OutputItem, status: str) -> Iterator[Event]:
        if item.call is None:
            likely = item.logprobs or []
            yield self._event("response.output_text.done", **_place(item), text=item.text, logprobs=likely)
            yield self._event("response.content_part.done", **_place(item), part=item.content())
        else:
            called = {"name": item.call[1], "arguments": item.text}
            yield self._event("response.function_call_arguments.done", **_place(item), **called)
        yield self._event("response.output_item.done", output_index=item.index, item=item.as_json(status))

    def _event(self, kind: str, **fields: Any) -> Event:
        number, self._num_told = self._num_told, self._num_told + 1
        return {"type": kind, "sequence_number": number, **fields}


def _place(item: OutputItem) -> dict[str, Any]:
    place = {"item_id": item.id, "output_index": item.index}
    return place if item.call is not None else place | {"content_index": 0}
