"""What a recogniser is: a pattern for candidates, and a pure check that says which parts of a candidate are real.

A check sees the candidate and a little of what stands before it, never what comes after: that is what makes a stream's
verdict the same as the whole text's. Patterns therefore take whole runs of characters, so that the check can look
around inside.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from policy.text.patterns import compiled
from policy.text.views import view

CONTEXT_CHARS = 64
"""How many characters before a candidate its check may look at."""

MAX_MATCH_CHARS = 8192
"""A candidate is decided at this length at the latest: what a stream holds back at most for one match."""


class Kind(StrEnum):
    """What can be recognised."""

    EMAIL = "email"
    PHONE = "phone"
    CARD = "card"
    IBAN = "iban"
    US_SSN = "us_ssn"
    NATIONAL_ID = "national_id"
    IP_ADDRESS = "ip_address"
    API_KEY = "api_key"
    JWT = "jwt"
    PRIVATE_KEY = "private_key"
    # By an entity finder only.
    PERSON = "person"
    LOCATION = "location"
    ORGANIZATION = "organization"


FOUND_BY_NAME = frozenset([Kind.PERSON, Kind.LOCATION, Kind.ORGANIZATION])
"""Kinds that no pattern finds: they need a model of names."""

Spans = Iterable[tuple[int, int]]


def as_written(text: str) -> str:
    """A value that is the same only if written the same."""
    return text


def letters_and_digits(text: str) -> str:
    """A value that is the same however it is grouped."""
    return "".join(character for character in text.upper() if character.isalnum())


@dataclass(frozen=True, slots=True)
class Recogniser:
    """Finds one kind of thing.

    ``check(candidate, before)`` returns the spans inside the candidate that are real. Where recognisers find the same
    characters, the higher ``priority`` has them. ``tail`` is the class of characters that go on belonging to a match
    that reached MAX_MATCH_CHARS. ``same`` makes the form in which two values are compared. ``needs`` is an expression
    of words of which one stands before everything that is real; None if there need be none. ``is_foreign``: a tenant
    wrote the pattern, and nobody knows what it costs.
    """

    name: str
    kind: str
    priority: int
    pattern: str
    check: Callable[[str, str], Spans]
    tail: str | None = None
    same: Callable[[str], str] = as_written
    needs: str | None = None
    is_foreign: bool = False


class EntityFinder(Protocol):
    """What finds names in a whole text: a model, not a pattern. It sees inputs only, since it needs the whole text."""

    def find(self, text: str) -> Iterable[tuple[int, int, Kind]]:
        """Return start, end and kind of each."""
        ...


class Words:
    """Words that speak for a kind of number, and words that speak against it, in several languages."""

    def __init__(self, good: str, bad: str = "") -> None:
        self.expression = _any_of(good)
        """What matches a word that speaks for it."""
        self._good = compiled(self.expression)
        self._bad = compiled(_any_of(bad)) if bad else None

    def judge(self, before: str) -> int:
        """Return 1 if the nearest word before speaks for it, -1 if it speaks against it, 0 if there is none.

        Of two that end at the same place the one for it counts: "phone no." is more than "no.".
        """
        good = _last(self._good, before)
        bad = -1 if self._bad is None else _last(self._bad, before)
        if good == bad == -1:
            return 0
        return 1 if good >= bad else -1


def _any_of(words: str) -> str:
    """An expression for any of the words, as texts are read; those of letters begin at a word's beginning."""
    return "(?i)" + "|".join(rf"\b{word}" if word[0].isascii() else word for word in view(words).text.split())


def _last(expression: Any, text: str) -> int:
    last = -1
    if expression.search(text) is None:
        # Most often, and for a third of the time.
        return last
    for found in expression.finditer(text):
        last = found.end()
    return last
