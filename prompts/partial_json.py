"""An incremental JSON parser for a text that arrives in pieces.

A walk is a generator: it yields when it needs more text, and is resumed when there is more. Its result depends only on
the whole text, not on the pieces. Nothing is read twice.
"""

import re
from collections.abc import Callable, Collection, Generator
from typing import TypeVar

T = TypeVar("T")
Walk = Generator[None, None, T]
Tell = Callable[[str], object]

_SPACE = re.compile(r"\s")
_STRUCTURE = re.compile(r'["{}\[\]<]')
_IN_STRING = re.compile(r'["\\]')


class Mismatch(Exception):
    """The text does not have the expected content here, or has ended."""


class TextEnded(Mismatch):
    """The text has ended, and its last part could have been the beginning of the expected content."""


class JsonCursor:
    """The text so far, and the read position."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.is_complete = False

    def add(self, text: str) -> None:
        """Append the next piece."""
        self.text += text

    def complete(self) -> None:
        """Mark the text as complete."""
        self.is_complete = True

    def peek(self, ignored: re.Pattern[str] = _SPACE) -> Walk[str | None]:
        """Skip white space, or the ``ignored`` characters. Return the next one, None at the end."""
        while True:
            while self.at < len(self.text):
                char = self.text[self.at]
                if not ignored.match(char):
                    return char
                self.at += 1
            if self.is_complete:
                return None
            yield

    def expect(self, char: str) -> Walk[None]:
        """Skip white space and read ``char``. Raises Mismatch."""
        if (following := (yield from self.peek())) != char:
            raise TextEnded if following is None else Mismatch
        self.at += 1

    def word(self, allowed: Collection[str]) -> Walk[str]:
        """Read one of the allowed strings, written without escapes, and return it.

        Raises Mismatch, as soon as it is certain.
        """
        yield from self.expect('"')
        while (end := self.text.find('"', self.at)) < 0:
            begun = self.text[self.at :]
            if not any(word.startswith(begun) for word in allowed):
                raise Mismatch
            if self.is_complete:
                raise TextEnded
            yield
        word = self.text[self.at : end]
        if word not in allowed:
            raise Mismatch
        self.at = end + 1
        return word

    def literal(self, literal: str) -> Walk[bool]:
        """Skip white space and ``literal``, or as much of it as there is. Return False for another text."""
        yield from self.peek()
        while True:
            here = self.text[self.at : self.at + len(literal)]
            if not literal.startswith(here):
                return False
            if len(here) == len(literal) or self.is_complete:
                self.at += len(here)
                return bool(here)
            yield

    def object(self, tell: Tell, depth: int = 0) -> Walk[None]:
        """Read an object, or the rest of ``depth`` nested ones, and pass its text on as it arrives.

        Counts brackets outside of strings and checks nothing else. Ends before a ``<`` outside of a string as well,
        which no JSON has, and at the end of the text.
        """
        look_at = self.at
        in_string = False
        while True:
            found = (_IN_STRING if in_string else _STRUCTURE).search(self.text, look_at)
            # A backslash escapes the next character.
            if found is None or (found[0] == "\\" and found.end() == len(self.text)):
                look_at = len(self.text) if found is None or self.is_complete else found.start()
                self._tell_up_to(look_at, tell)
                if self.is_complete:
                    return
                yield
                continue
            look_at = found.end() + (found[0] == "\\")
            in_string ^= found[0] == '"'
            depth += (found[0] in "{[") - (found[0] in "}]")
            if found[0] == "<" or (depth <= 0 and found[0] in "}]"):
                self._tell_up_to(look_at - (found[0] == "<"), tell)
                return

    def _tell_up_to(self, end: int, tell: Tell) -> None:
        if end > self.at:
            tell(self.text[self.at : end])
            self.at = end
