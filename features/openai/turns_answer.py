"""Builds the chunks of a chat whose model calls tools of the server. No HTTP and no I/O.

The text of every turn is content, as it comes. The text of a call is none: the call is told in ``server_tool_calls`` of
a delta when its turn has ended, and its result when it has returned. Clients that join the deltas by ``index``, as they
do with ``tool_calls``, get one object for each call. ``tool_calls`` are never there, because the caller runs nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.features.openai.chat_answer import ChatAnswer
from headrace.producer_api.streaming.turns import CallEnded, TurnCall, form_of_turns
from headrace.prompts.answer_reader import AnswerPiece, AnswerReader, ReasoningPiece, turn_reader
from headrace.prompts.tool_calls import CallPiece, ContentPiece
from headrace.store.jobs.jobs import Job
from headrace.store.payloads.reasoning import ReasoningFormat
from headrace.store.tasks.generate import ToolStyle


class TurnReaders:
    """The reader of the turn that is written now, and of those behind it."""

    def __init__(self, job: Job) -> None:
        style, marks = job.payload.get("tool_style"), job.payload.get("reasoning")
        self._style = None if style is None else ToolStyle(style)
        self._reasoning = None if marks is None else ReasoningFormat.model_validate(marks)
        self._form = form_of_turns(job)

    def reader(self) -> AnswerReader | None:
        """Return a reader of this turn, None if all of its text is content."""
        return turn_reader(self._style, self._form, self._reasoning)

    @property
    def left(self) -> int:
        """The calls that the job may still make."""
        return self._form.left

    def go_on(self, output: Mapping[str, Any]) -> None:
        """A turn has ended with this output."""
        self._form = self._form.after(len(output["tool_calls"]))


class TurnsChatAnswer(ChatAnswer):
    """Builds the completion of a chat with turns. A whole one has the text of the last turn alone."""

    needs_turns = False

    def __init__(
        self, job: Job, choice: int = 0, *, with_usage: bool = False, shared: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(job, choice, with_usage=with_usage, shared=shared)
        self._readers = TurnReaders(job)
        self._reader = self._readers.reader()
        self._said: set[type[AnswerPiece]] = set()
        self._said_before: set[type[AnswerPiece]] = set()

    def turn_ended(self, output: Mapping[str, Any], calls: Sequence[TurnCall]) -> list[dict[str, Any]]:
        """Return the chunks for the end of a turn, all of whose text was given to ``pieces``."""
        chunks = [] if self._reader is None else self._read(self._reader.finish())
        self._readers.go_on(output)
        self._reader = self._readers.reader()
        self._said_before |= self._said
        self._said = set()
        return [*chunks, self._chunk({"server_tool_calls": [_begun(call) for call in calls]}, None)]

    def call_ended(self, ended: CallEnded) -> list[dict[str, Any]]:
        """Return the chunks for the result of a call."""
        status = "failed" if ended.is_error else "completed"
        told = {"index": ended.call.number, "status": status, "output": ended.text}
        return [self._chunk({"server_tool_calls": [told]}, None)]

    def _read(self, pieces: Sequence[AnswerPiece]) -> list[dict[str, Any]]:
        return super()._read([self._apart(piece) for piece in pieces if not isinstance(piece, CallPiece)])

    def _apart(self, piece: ContentPiece | ReasoningPiece) -> ContentPiece | ReasoningPiece:
        """Return a piece; the first of its kind in a turn behind another is on a line of its own."""
        is_apart = type(piece) in self._said_before and type(piece) not in self._said
        self._said.add(type(piece))
        return type(piece)(f"\n{piece.text}") if is_apart else piece

    def pieces(self, text: str, entries: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
        """Return the chunks for the next text of the turn."""
        return self._read([ContentPiece(text)] if self._reader is None else self._reader.add(text))


def _begun(call: TurnCall) -> dict[str, Any]:
    return {
        "index": call.number,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
        "job_id": call.job_id,
    }
