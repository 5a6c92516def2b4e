"""Reads the text of an answer, whole or in pieces, with the same result: its reasoning, its tool calls, the rest.

<think>The user asks …</think>Let me look. <tool_call>{"name": …}</tool_call>
       └─ ReasoningPiece ─┘   └ Content ─┘ └──────── CallPiece ────────────┘
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from headrace.prompts.reasoning import ReasoningPiece, ReasoningReader
from headrace.prompts.tool_calls import CallPiece, ContentPiece, ToolCallReader, WrittenCall, call_id, merged
from headrace.store.payloads.conversation import FunctionCall, ToolCall
from headrace.store.payloads.reasoning import ReasoningFormat
from headrace.store.tasks.generate import GeneratePayload, ToolStyle
from headrace.store.tasks.turn_form import TurnForm

AnswerPiece = ReasoningPiece | ContentPiece | CallPiece


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """A whole answer. ``content`` is None if there are calls and nothing else; ``reasoning`` if there is none."""

    content: str | None
    calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None


class AnswerReader:
    """Parses one output as it arrives. Tool calls are looked for after the reasoning only."""

    def __init__(self, reasoning: ReasoningReader | None, calls: ToolCallReader | None) -> None:
        self._reasoning = reasoning
        self._calls = calls

    @property
    def answer_at(self) -> int | None:
        """The number of bytes before the answer, in UTF-8; None if that is not known yet."""
        return 0 if self._reasoning is None else self._reasoning.answer_at

    def add(self, text: str) -> list[AnswerPiece]:
        """Take the next piece and return the new certain parts, often none."""
        return list(self._read([text] if self._reasoning is None else self._reasoning.add(text)))

    def finish(self, *, is_cut: bool = False) -> list[AnswerPiece]:
        """Return the held parts; this is the last call. ``is_cut``: the model would have written more."""
        pieces = list(self._read([] if self._reasoning is None else self._reasoning.finish()))
        return pieces + ([] if self._calls is None else list(self._calls.finish(is_cut=is_cut)))

    def _read(self, parts: Iterable[ReasoningPiece | str]) -> Iterator[AnswerPiece]:
        for part in parts:
            if isinstance(part, ReasoningPiece):
                yield part
            elif self._calls is None:
                yield ContentPiece(part)
            else:
                yield from self._calls.add(part)


def reader_for(payload: GeneratePayload) -> AnswerReader | None:
    """Return a reader of the answer to a request, None if all of its text is content."""
    calls = None
    if payload.tool_style is not None:
        names = [tool.function.name for tool in payload.input.callable_tools]
        most = 1 if payload.input.parallel_tool_calls is False else None
        calls = ToolCallReader(payload.tool_style, names, most, payload.answer_shape)
    reasoning = None if payload.reasoning is None else ReasoningReader(payload.reasoning)
    return None if calls is None and reasoning is None else AnswerReader(reasoning, calls)


def turn_reader(style: ToolStyle | None, form: TurnForm, reasoning: ReasoningFormat | None) -> AnswerReader | None:
    """Return a reader of a turn whose calls the server makes, None if all of its text is content."""
    calls = None
    if style is not None and form.left:
        calls = ToolCallReader(style, form.functions, form.most, form.first_shape)
    marks = None if reasoning is None else ReasoningReader(reasoning)
    return None if calls is None and marks is None else AnswerReader(marks, calls)


def read_answer(payload: GeneratePayload, job_id: str, text: str, *, is_cut: bool) -> ReadAnswer:
    """Return the parts of a whole answer. ``is_cut``: the model would have written more."""
    reader = reader_for(payload)
    if reader is None:
        return ReadAnswer(text)
    pieces = [*reader.add(text), *reader.finish(is_cut=is_cut)]
    reasoning = "".join(piece.text for piece in pieces if isinstance(piece, ReasoningPiece))
    reading = merged(piece for piece in pieces if not isinstance(piece, ReasoningPiece))
    calls = tuple(_tool_call(job_id, index, call) for index, call in enumerate(reading.calls))
    return ReadAnswer(reading.content or (None if calls else ""), calls, reasoning or None)


def _tool_call(job_id: str, index: int, call: WrittenCall) -> ToolCall:
    # Not held to the bounds of a request: what a model wrote is answered however long it is.
    function = FunctionCall.model_construct(name=call.name, arguments=call.arguments)
    return ToolCall.model_construct(id=call_id(job_id, index), type="function", function=function)
