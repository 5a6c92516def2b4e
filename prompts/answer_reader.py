"""Reads the text of an answer, whole or in pieces, with the same result: its reasoning, its tool calls, the rest.

<think>The user asks …</think>Let me look. <tool_call>{"name": …}</tool_call>
       └─ ReasoningPiece ─┘   └ Content ─┘ └──────── CallPiece ────────────┘

``find_support`` finds what a model's chat template knows of reasoning. A model reasons here if its
template names a pair of marks that are tokens of its vocabulary::

    marks                                                              models
    <think> … </think>                                                 Qwen 3, DeepSeek R1 and V3.1, GLM 4.5, SmolLM 3
    [THINK] … [/THINK]                                                 Magistral
    <seed:think> … </seed:think>                                       Seed-OSS
    <|channel|>analysis<|message|> … <|channel|>final<|message|>       gpt-oss

What a request can change is found by rendering a conversation with each variable: a switch (``enable_thinking`` or
``thinking``) and levels (``reasoning_effort``). Where a template has no levels, an effort is a share of the answer's
tokens, at which the end of the reasoning is forced.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.prompts.tool_calls import CallPiece, ContentPiece, ToolCallReader, WrittenCall, call_id, merged
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import FunctionCall, ToolCall
from headrace.store.payloads.reasoning import ReasoningEffort, ReasoningFormat, ReasoningOptions
from headrace.store.tasks.generate import GeneratePayload, ToolStyle
from headrace.store.tasks.turn_form import TurnForm

Render = Callable[[Mapping[str, Any]], str | None]
"""Returns the text of a short conversation with these variables of the template; None if it refuses them."""

_HARMONY = ReasoningFormat(
    opening="<|channel|>analysis<|message|>",
    closing="<|end|><|start|>assistant<|channel|>final<|message|>",
    direct="<|channel|>final<|message|>",
)
THINK_TAGS = ReasoningFormat(opening="<think>", closing="</think>")
_FORMATS = (
    THINK_TAGS,
    ReasoningFormat(opening="[THINK]", closing="[/THINK]"),
    ReasoningFormat(opening="<seed:think>", closing="</seed:think>"),
)
_TAG = re.compile(r"<[^<>]+>|\[/?THINK\]")

_SWITCHES = ("enable_thinking", "thinking")
_LEVELS = "reasoning_effort"
_NAMED_LEVELS = (ReasoningEffort.LOW, ReasoningEffort.MEDIUM, ReasoningEffort.HIGH)

_SHARES = {
    ReasoningEffort.MINIMAL: 0.1,
    ReasoningEffort.LOW: 0.2,
    ReasoningEffort.MEDIUM: 0.5,
    ReasoningEffort.HIGH: 0.8,
    ReasoningEffort.XHIGH: 0.95,
}
"""Of the most tokens of an answer: how many may be reasoning, where the template has no levels."""

_PARAM = "input.reasoning"
_OFF = (ReasoningEffort.NONE, ReasoningEffort.MINIMAL)


@dataclass(frozen=True, slots=True)
class ReasoningSupport:
    """What requests can change of a model's reasoning. ``is_default``: it reasons if a request does not say.

    ``off`` are the template's variables that switch it off, None if nothing does; ``on`` those that switch it on.
    ``levels`` are the efforts that the template itself knows.
    """

    format: ReasoningFormat
    is_default: bool
    on: Mapping[str, Any]
    off: Mapping[str, Any] | None
    levels: tuple[ReasoningEffort, ...]

    @property
    def efforts(self) -> tuple[ReasoningEffort, ...]:
        """The efforts that a request may ask for."""
        least = (*(() if self.off is None else (ReasoningEffort.NONE,)), ReasoningEffort.MINIMAL)
        return (*least, *(self.levels or (each for each in _SHARES if each is not ReasoningEffort.MINIMAL)))

    @property
    def is_controlled(self) -> bool:
        """True if the template has a variable for it: then the model certainly reasons."""
        return bool(self.on or self.off or self.levels)

    def variables(self, options: ReasoningOptions | None) -> Mapping[str, Any]:
        """Return the template's variables for a request. Raises InvalidRequest for what the model cannot do."""
        if options is None:
            return {}
        effort = options.effort
        if effort in _OFF and self.off is not None:
            return self.off
        is_least = effort is ReasoningEffort.MINIMAL or (effort is ReasoningEffort.NONE and options.optional)
        if effort is not None and not is_least and effort not in self.efforts and not options.optional:
            known = ", ".join(self.efforts)
            raise _unable(f"the reasoning effort of this model is one of {known}", "effort")
        if not self.levels or effort is None:
            return self.on
        level = self.levels[0] if is_least else effort if effort in self.levels else self.levels[-1]
        return {**self.on, _LEVELS: level.value}

    def budget(self, options: ReasoningOptions | None, max_tokens: int) -> int | None:
        """Return how many tokens of an answer of ``max_tokens`` may be reasoning. None: any number."""
        if options is None or options.max_tokens is not None:
            return None if options is None else options.max_tokens
        has_share = options.effort is not None and not self.levels
        return max(1, int(max_tokens * _SHARES[options.effort])) if has_share and options.effort in _SHARES else None


def check_without_reasoning(options: ReasoningOptions | None) -> None:
    """Raise InvalidRequest if a request asks a model to reason that cannot."""
    if options is None or options.optional or options.effort in _OFF:
        return
    if options.effort is not None:
        raise _unable(f"this model does not reason: leave out the effort {options.effort}, or send `none`", "effort")
    if options.max_tokens is not None:
        raise _unable(f"this model does not reason: leave out `{_PARAM}.max_tokens`", "max_tokens")
    raise InvalidRequest("this model does not reason", code="unsupported_parameter", param=_PARAM)


def _unable(message: str, field: str) -> InvalidRequest:
    return InvalidRequest(message, code="unsupported_parameter", param=f"{_PARAM}.{field}")


def tags_of(marks: ReasoningFormat) -> tuple[str, ...]:
    """Return the parts of the marks that must be tokens of their own."""
    return tuple(dict.fromkeys(_TAG.findall(marks.opening + marks.closing)))


def find_support(source: str, render: Render) -> ReasoningSupport | None:
    """Return what a chat template can do, None if it names no marks of reasoning."""
    marks = _marks_of(source)
    if marks is None:
        return None
    default = render({})
    switch = next((name for name in _SWITCHES if render({name: True}) != render({name: False})), None)
    by_level = {level: render({_LEVELS: level.value}) for level in _NAMED_LEVELS}
    texts = {text for text in by_level.values() if text is not None}
    levels = tuple(level for level, text in by_level.items() if text is not None) if len(texts) > 1 else ()
    off: Mapping[str, Any] | None = None
    if switch is not None:
        off = {switch: False}
    elif levels and ends_with(render({_LEVELS: "none"}), marks.closing):
        off = {_LEVELS: "none"}
    is_default = default != render({switch: False}) if switch is not None else not ends_with(default, marks.closing)
    return ReasoningSupport(marks, is_default, {} if switch is None else {switch: True}, off, levels)


def _marks_of(source: str) -> ReasoningFormat | None:
    if "<|channel|>" in source and "analysis" in source:
        return _HARMONY
    return next((marks for marks in _FORMATS if marks.closing in source), None)


def ends_with(text: str | None, mark: str) -> bool:
    """Return True if the text ends with a mark, and white space after it."""
    return text is not None and text.rstrip().endswith(mark)


@dataclass(frozen=True, slots=True)
class ReasoningPiece:
    """The next text of the reasoning."""

    text: str


class ReasoningReader:
    """Parts one output as it arrives: the reasoning, then the text of the answer.

    Only what stands at the beginning is reasoning. White space beside the marks belongs to neither part. The pieces
    joined do not depend on how the text was cut.
    """

    def __init__(self, marks: ReasoningFormat) -> None:
        self._marks = marks
        self._held = ""
        self._num_read = 0
        self._parts = self._begin
        self._is_over = False
        self._has_reasoning = False
        self.answer_at: int | None = None
        """The number of bytes before the answer, in UTF-8, once it is known."""

    def add(self, text: str) -> list[ReasoningPiece | str]:
        """Take the next text. Return what is certain: reasoning, and as plain texts the answer."""
        self._held += text
        return [part for part in self._parts() if part not in ("", ReasoningPiece(""))]

    def finish(self) -> list[ReasoningPiece | str]:
        """Return the rest; this is the last call. A mark that was cut off is dropped."""
        self._is_over = True
        return self.add("")

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        self._num_read += len(taken.encode(errors="surrogatepass"))
        return taken

    def _begin(self) -> Iterator[ReasoningPiece | str]:
        begun = self._held.lstrip()
        marks = {self._marks.opening: self._reason, self._marks.direct: self._begin_answer}
        for mark, following in marks.items():
            if mark and begun.startswith(mark):
                self._take(len(self._held) - len(begun) + len(mark))
                self._parts = following
                yield from following()
                return
        if any(mark.startswith(begun) for mark in marks if mark) and not self._is_over:
            return
        if self._is_over and len(begun) > 1 and any(mark.startswith(begun) for mark in marks if mark):
            self._take(len(self._held))
        self._parts = self._reason if self._marks.is_open else self._answer
        yield from self._parts()

    def _reason(self) -> Iterator[ReasoningPiece | str]:
        closing = self._marks.closing
        end = self._held.find(closing)
        if end >= 0:
            yield self._reasoning(self._take(end).rstrip())
            self._take(len(closing))
            self._parts = self._begin_answer
            yield from self._begin_answer()
            return
        begun = next((n for n in range(len(closing) - 1, 0, -1) if self._held.endswith(closing[:n])), 0)
        if self._is_over:
            yield self._reasoning(self._held[: len(self._held) - (begun if begun > 1 else 0)].rstrip())
            self._take(len(self._held))
            return
        certain = self._held[: len(self._held) - begun].rstrip()
        if certain:
            yield self._reasoning(self._take(len(certain)))

    def _reasoning(self, text: str) -> ReasoningPiece:
        if not self._has_reasoning:
            text = text.lstrip()
            self._has_reasoning = bool(text)
        return ReasoningPiece(text)

    def _begin_answer(self) -> Iterator[ReasoningPiece | str]:
        self._take(len(self._held) - len(self._held.lstrip()))
        if self._held:
            self._parts = self._answer
            yield from self._answer()

    def _answer(self) -> Iterator[ReasoningPiece | str]:
        if self.answer_at is None:
            self.answer_at = self._num_read
        yield self._take(len(self._held))


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
