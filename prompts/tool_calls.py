"""Parses tool calls in the output of a model, whole or in pieces, with the same result.

Three formats are supported. A name that is not one of the tools of the request is no call in any of them::

    hermes   <tool_call>{"name": "f", "arguments": {...}}</tool_call>   anywhere in the text
    llama3   {"name": "f", "parameters": {...}}                         at the start of a line, or after <|python_tag|>
    json     {"name": "f", "arguments": {...}}                          at the start of a line

A call starts when its name is known and its arguments begin. From then on its text is returned as it arrives. An error
before that point makes the text content; an error after it gives a call with arguments that are not valid JSON, which
can happen with OpenAI too. White space around calls is dropped.

If a grammar held the answer to calls, the text is calls only. If it allowed an answer in some form as well, the first
characters decide for the whole text: no JSON without white space begins as such a call does. The beginning of a call
that ``max_tokens`` cut off is dropped.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby

from headrace.prompts.partial_json import JsonCursor, Mismatch, TextEnded, Walk
from headrace.store.tasks.generate import AnswerShape, ToolStyle


@dataclass(frozen=True, slots=True)
class ContentPiece:
    """The next text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallPiece:
    """The next of call ``index``: with a ``name`` it begins; ``arguments`` are more of their text."""

    index: int
    name: str | None
    arguments: str


Piece = ContentPiece | CallPiece


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A call as the model wrote it."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A whole answer: what of it is no call, and the calls in order."""

    content: str
    calls: tuple[WrittenCall, ...]


@dataclass(frozen=True, slots=True)
class _Syntax:
    """What a style has around its calls. In a bare one a brace at the start of a line begins a call by itself.

    ``first``: the first characters of a call that a grammar of ``prompts.tool_grammar`` allows.
    """

    opening: str | None
    closing: str | None
    is_bare: bool
    first: str


HERMES_TAGS = ("<tool_call>", "</tool_call>")

_SYNTAX = {
    ToolStyle.HERMES: _Syntax(*HERMES_TAGS, is_bare=False, first=HERMES_TAGS[0]),
    ToolStyle.LLAMA3: _Syntax("<|python_tag|>", None, is_bare=True, first='{"name": "'),
    ToolStyle.JSON: _Syntax(None, None, is_bare=True, first='{"name": "'),
}
_ARGUMENTS = ("arguments", "parameters")
_KEYS = ("name", "type", *_ARGUMENTS)
_SEPARATORS = re.compile(r"[\s;,]")
_MOST_IN_VAIN = 262_144
"""The most characters of one attempt to read a call, to bound the time for a text without calls."""


class ToolCallReader:
    """Parses one output as it arrives. ``most`` is the maximum number of calls; further ones are dropped.

    ``shape``: what a grammar allowed; None if there was none.

    Text that is read and not returned is white space, or may become a call::

        returned  │ held │ not here yet
                  └ _told
    """

    def __init__(
        self, style: ToolStyle, names: Collection[str], most: int | None = None, shape: AnswerShape | None = None
    ) -> None:
        self._syntax = _SYNTAX[style]
        self._names = frozenset(names)
        self._most = most
        self._shape = shape
        self._is_cut = False
        self._has_begun = False
        openings = [re.escape(self._syntax.opening)] if self._syntax.opening else []
        self._opening = re.compile("|".join([*openings, r"\{"] if self._syntax.is_bare else openings))
        self._cursor = JsonCursor()
        self._told = 0
        self._num_calls = 0
        self._num_in_vain = 0
        self._last_call_end: int | None = None
        self._has_content = False
        self._pieces: list[Piece] = []
        self._walk = self._read()

    def add(self, text: str) -> list[Piece]:
        """Take the next piece and return the new certain parts, often none."""
        self._cursor.add(text)
        return self._go_on()

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        """Return the held parts; this is the last call. ``is_cut``: the model would have written more."""
        self._is_cut = is_cut
        self._cursor.complete()
        return self._go_on()

    def _go_on(self) -> list[Piece]:
        next(self._walk, None)
        pieces, self._pieces = self._pieces, []
        return list(_joined(pieces))

    def _read(self) -> Walk[None]:
        if self._shape is AnswerShape.ANSWER_OR_CALLS:
            yield from self._choose()
        cursor = self._cursor
        while True:
            found = self._opening.search(cursor.text, cursor.at)
            if found is None:
                self._tell_content(self._end_of_content())
                if cursor.is_complete:
                    return
                yield
            elif self._may_open(found):
                yield from self._call_or_content(found)
            else:
                self._tell_content(found.end())

    def _choose(self) -> Walk[None]:
        """Read up to the first character that differs from those of a call. If there is one, the text is content."""
        cursor, first = self._cursor, self._syntax.first
        while len(cursor.text) < len(first) and first.startswith(cursor.text) and not cursor.is_complete:
            yield
        if cursor.text.startswith(first) or (first.startswith(cursor.text) and self._is_cut):
            self._shape = AnswerShape.CALLS
            return
        while True:
            self._tell_content(len(cursor.text))
            yield

    def _may_open(self, found: re.Match[str]) -> bool:
        """False for a brace in the middle of a line, unless a call has just ended there."""
        if self._num_in_vain > _MOST_IN_VAIN:
            return False
        if found[0] != "{" or found.start() == self._last_call_end:
            return True
        line = found.string.rfind("\n", 0, found.start()) + 1
        return not found.string[line : found.start()].strip()

    def _end_of_content(self) -> int:
        """Return the end of the certain content: before white space, and before text that may become a tag."""
        text = self._cursor.text
        tag = self._syntax.opening or ""
        begun = next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)
        if self._cursor.is_complete:
            is_call = self._is_cut and begun > (0 if self._shape is AnswerShape.CALLS else 1)
            return len(text) - (begun if is_call else 0)
        return self._told + len(text[self._told : len(text) - begun].rstrip())

    def _tell_content(self, end: int) -> None:
        text = self._cursor.text[self._told : end]
        if text:
            # A call was between the two texts, so they are separate words.
            is_apart = self._told == self._last_call_end and self._has_content
            self._pieces.append(ContentPiece(f"\n{text}" if is_apart else text))
            self._has_content = True
            self._told = end
        self._cursor.at = max(self._cursor.at, self._told)

    def _call_or_content(self, found: re.Match[str]) -> Walk[None]:
        cursor = self._cursor
        cursor.at = found.start() if found[0] == "{" else found.end()
        try:
            self._has_begun = found[0] != "{" or self._shape is AnswerShape.CALLS
            name, arguments = yield from self._head()
        except Mismatch as mismatch:
            if self._has_begun and self._is_cut and isinstance(mismatch, TextEnded):
                self._tell_content(self._told + len(found.string[self._told : found.start()].rstrip()))
                self._told = cursor.at = len(cursor.text)
                return
            self._num_in_vain += cursor.at - found.start()
            cursor.at = found.end()
            self._tell_content(found.end())
            return
        self._tell_content(self._told + len(found.string[self._told : found.start()].rstrip()))
        yield from self._tell_call(name, arguments)
        yield from self._tail()
        self._told = self._last_call_end = cursor.at

    def _tell_call(self, name: str, arguments: str | None) -> Walk[None]:
        """Give out a call: its arguments as they come, unless they stood before the name."""
        index, self._num_calls = self._num_calls, self._num_calls + 1

        def tell(text: str, name: str | None = None) -> None:
            if self._most is None or index < self._most:
                self._pieces.append(CallPiece(index, name, text))

        tell(arguments or "", name)
        if arguments is None:
            yield from self._cursor.object(tell)

    def _head(self) -> Walk[tuple[str, str | None]]:
        """Read a call up to its arguments; return its name, and its arguments if they stood before it.

        Raises Mismatch as soon as it can be no call.
        """
        cursor = self._cursor
        name, arguments = None, None
        yield from cursor.expect("{")
        while True:
            key = yield from cursor.word(_KEYS)
            yield from cursor.expect(":")
            if key == "name":
                self._has_begun = True
                name = yield from cursor.word(self._names)
            elif key == "type":
                yield from cursor.word(("function",))
            elif (following := (yield from cursor.peek())) != "{":
                raise TextEnded if following is None else Mismatch
            elif name is not None:
                return name, None
            else:
                arguments = yield from self._early_arguments()
            if (yield from cursor.peek()) == "}":
                break
            yield from cursor.expect(",")
        # Between tags the meaning is clear. A bare object may be part of an answer.
        if name is None or (arguments is None and self._syntax.is_bare):
            raise Mismatch
        return name, arguments or "{}"

    def _early_arguments(self) -> Walk[str]:
        parts: list[str] = []
        yield from self._cursor.object(parts.append)
        if not is_json_object("".join(parts)):
            raise TextEnded if self._cursor.at == len(self._cursor.text) else Mismatch
        return "".join(parts)

    def _tail(self) -> Walk[None]:
        """Pass over what closes a call, as far as it is there, and what separates it from the next."""
        cursor = self._cursor
        following = yield from cursor.peek()
        if following == ",":
            yield from cursor.object(lambda _: None, depth=1)
        elif following == "}":
            cursor.at += 1
        if self._syntax.closing is not None:
            yield from cursor.literal(self._syntax.closing)
        yield from cursor.peek(_SEPARATORS) if self._syntax.is_bare else cursor.peek()


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the pieces, content that was found bit by bit as one."""
    for is_content, group in groupby(pieces, key=lambda piece: isinstance(piece, ContentPiece)):
        if is_content:
            yield ContentPiece("".join(piece.text for piece in group if isinstance(piece, ContentPiece)))
        else:
            yield from group


def is_json_object(text: str) -> bool:
    """Return True for the text of a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def merged(pieces: Iterable[Piece]) -> Reading:
    """Return what the pieces of one answer are together."""
    content = ""
    calls: dict[int, WrittenCall] = {}
    for piece in pieces:
        match piece:
            case ContentPiece(text):
                content += text
            case CallPiece(index, name, arguments):
                so_far = calls.get(index) or WrittenCall(name or "", "")
                calls[index] = WrittenCall(so_far.name, so_far.arguments + arguments)
    return Reading(content, tuple(calls.values()))


def choice_name(job_id: str, choice: int) -> str:
    """Return the name under which the calls of a job's choice have their ids; of the first one it is the job's id."""
    return f"{job_id}.{choice}" if choice else job_id


def call_id(job_id: str, index: int) -> str:
    """Return the id of a call of a job. It is a function of its arguments."""
    return f"call_{blake2b(f'{job_id} {index}'.encode(), digest_size=12).hexdigest()}"
