"""A text that comes in pieces, read as JSON by walks that wait wherever they need more of it to decide.

A walk is a generator: it yields when it waits for text, and is resumed when there is more. Every decision depends on
the text alone and never on where it was cut. Nothing is read twice.
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
    """Something else stands here, or nothing any more."""


class Cursor:
    """The text so far, and how far it was read."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.is_complete = False

    def add(self, text: str) -> None:
        """Take the next text."""
        self.text += text

    def complete(self) -> None:
        """No more text will come."""
        self.is_complete = True

    def peek(self, ignored: re.Pattern[str] = _SPACE) -> Walk[str | None]:
        """Pass over white space, or whatever characters are ``ignored``; return the next one, None at the end."""
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
        """Pass over white space and ``char``. Raises Mismatch."""
        if (yield from self.peek()) != char:
            raise Mismatch
        self.at += 1

    def word(self, allowed: Collection[str]) -> Walk[str]:
        """Pass over one of the allowed strings, written without escapes, and return it.

        Raises Mismatch, as soon as it is certain.
        """
        yield from self.expect('"')
        while (end := self.text.find('"', self.at)) < 0:
            begun = self.text[self.at :]
            if self.is_complete or not any(word.startswith(begun) for word in allowed):
                raise Mismatch
            yield
        word = self.text[self.at : end]
        if word not in allowed:
            raise Mismatch
        self.at = end + 1
        return word

    def literal(self, literal: str) -> Walk[bool]:
        """Pass over white space and ``literal``, or as much of it as there is; return False for something else."""
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
        """Pass over an object, or from inside ``depth`` of them to the end of the outermost, telling it as it comes.

        Counts brackets outside of strings and checks nothing else. Ends before a ``<`` outside of a string as well,
        which no JSON has, and at the end of the text.
        """
        look_at = self.at
        in_string = False
        while True:
            found = (_IN_STRING if in_string else _STRUCTURE).search(self.text, look_at)
            # A backslash takes the character behind it along.
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
