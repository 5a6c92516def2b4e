"""Builds the message of a job whose model calls tools of the server. No HTTP and no I/O.

The blocks of each turn come in order, and between them an ``mcp_tool_use`` for each call, then an ``mcp_tool_result``
for each, as Anthropic's API has them for servers of MCP. ``tool_use`` is never there, because the caller runs nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.features.anthropic.message_answer import Block, Event, MessageAnswer, input_of
from headrace.features.openai.turns_answer import TurnReaders
from headrace.producer_api.streaming.answers import Entries
from headrace.producer_api.streaming.turns import CallEnded, TurnCall
from headrace.prompts.answer_reader import AnswerPiece
from headrace.prompts.tool_calls import CallPiece, ContentPiece
from headrace.store.jobs.jobs import Job
from headrace.store.payloads.server_tools import SEPARATOR, server_of

OWN_SERVER = "headrace"
"""The ``server_name`` of tools that are no server's."""


@dataclass
class _Use(Block):
    """A call that the server makes; its parts are JSON of its input."""

    def as_json(self, text: str, *, is_whole: bool = True) -> dict[str, Any]:
        use_id, function = self.tool or ("", "")
        server = server_of(function)
        name = function if server is None else function.removeprefix(f"{server}{SEPARATOR}")
        named = {"id": use_id, "name": name, "server_name": server or OWN_SERVER}
        return {"type": "mcp_tool_use", **named, "input": input_of(text)}


@dataclass
class _Result(Block):
    """The result of a call, which comes in one piece."""

    text: str = ""
    is_error: bool = False

    def as_json(self, text: str, *, is_whole: bool = True) -> dict[str, Any]:
        use_id, _ = self.tool or ("", "")
        content = [{"type": "text", "text": self.text}]
        return {"type": "mcp_tool_result", "tool_use_id": use_id, "is_error": self.is_error, "content": content}


class TurnsMessageAnswer(MessageAnswer):
    """Builds the message of a job with turns."""

    needs_turns = True

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._readers = TurnReaders(job)
        self._reader = self._readers.reader()

    def pieces(self, text: str, entries: Entries = ()) -> list[Event]:
        """Return the events for the next text of the turn."""
        return list(self._read([ContentPiece(text)] if self._reader is None else self._reader.add(text)))

    def turn_ended(self, output: Mapping[str, Any], calls: Sequence[TurnCall]) -> list[Event]:
        """Return the events for the end of a turn, all of whose text was given to ``pieces``."""
        events = [] if self._reader is None else list(self._read(self._reader.finish()))
        self._readers.go_on(output)
        self._reader = self._readers.reader()
        for call in calls:
            events += [*self._begin(_Use((_use_id(call), call.name))), *self._add(call.arguments)]
        return events

    def call_ended(self, ended: CallEnded) -> list[Event]:
        """Return the events for the result of a call."""
        named = (_use_id(ended.call), ended.call.name)
        return list(self._begin(_Result(named, text=ended.text, is_error=ended.is_error)))

    def _read(self, pieces: Iterable[AnswerPiece]) -> Iterator[Event]:
        return super()._read(piece for piece in pieces if not isinstance(piece, CallPiece))


def _use_id(call: TurnCall) -> str:
    return f"mcptoolu_{call.job_id.removeprefix('job_')}"
