"""A recogniser is a pattern for candidates, and a pure check that returns the real spans in a candidate.

A check sees the candidate and a few characters before it, never the text after it. So a stream gives the same result as
the whole text. For that reason a pattern matches a whole run of characters, and the check searches inside it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from headrace.policy.text.normalisation import normalise
from headrace.policy.text.patterns import compiled

CONTEXT_CHARS = 64
"""The number of characters before a candidate that its check reads, which a stream keeps."""

MAX_MATCH_CHARS = 8192
"""The maximum length of a candidate, and of the text that a stream holds back for one match."""


class Kind(StrEnum):
    """The kinds of findings."""

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
    # Found by an entity finder only.
    PERSON = "person"
    LOCATION = "location"
    ORGANIZATION = "organization"


FOUND_BY_NAME = frozenset([Kind.PERSON, Kind.LOCATION, Kind.ORGANIZATION])
"""Kinds without a pattern. They need a model for names."""

STRUCTURED = tuple(kind for kind in Kind if kind not in FOUND_BY_NAME)
"""Kinds with a pattern."""

Spans = Iterable[tuple[int, int]]


def as_written(text: str) -> str:
    """Return the text itself: two values are equal only if written the same."""
    return text


def letters_and_digits(text: str) -> str:
    """Return only the letters and digits, so that two groupings of a value are equal."""
    return "".join(character for character in text.upper() if character.isalnum())


@dataclass(frozen=True, slots=True)
class Recogniser:
    """Finds one kind of data.

    ``check(candidate, before)`` returns the real spans inside the candidate. If two recognisers find the same
    characters, the higher ``priority`` gets them. ``tail`` is the class of characters that continue a match that has
    reached MAX_MATCH_CHARS. ``same`` returns the form in which two values are compared. ``needs`` is an expression for
    words; one of them must be before each real span. None means that no word is needed. ``is_foreign``: a tenant wrote
    the pattern, and its cost is unknown.
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
    """A model that finds names. It needs the whole text, so it is used for inputs only."""

    def find(self, text: str) -> Iterable[tuple[int, int, Kind]]:
        """Return start, end and kind of each name."""
        ...


class Words:
    """Words that are evidence for a kind of number, and words that are evidence against it, in several languages.

    ``in_names``: a word in favour also counts as the last part of a program's name: ``customer_cpf``.
    """

    def __init__(self, good: str, bad: str = "", *, in_names: bool = False) -> None:
        self.expression = _any_of(good, r"(?:\b|_)" if in_names else r"\b")
        """An expression for the words in favour."""
        self._good = compiled(self.expression)
        self._bad = compiled(_any_of(bad)) if bad else None

    def judge(self, before: str) -> int:
        """Return 1 if the nearest word before is in favour, -1 if it is against, 0 if there is no word.

        If two words end at the same position, the one in favour counts: "phone no." is stronger than "no.".
        """
        good = _last(self._good, before)
        bad = -1 if self._bad is None else _last(self._bad, before)
        if good == bad == -1:
            return 0
        return 1 if good >= bad else -1


def _any_of(words: str, begin: str = r"\b") -> str:
    """Return an expression for any of the words, normalised. Words of letters must start at ``begin``."""
    return "(?i)" + "|".join(begin + word if word[0].isascii() else word for word in normalise(words).text.split())


def _last(expression: Any, text: str) -> int:
    last = -1
    if expression.search(text) is None:
        # The common case, which takes a third of the time.
        return last
    for found in expression.finditer(text):
        last = found.end()
    return last
