"""Deny lists: many phrases by one Aho-Corasick automaton, and patterns by RE2 beside the recognisers."""

from bisect import bisect_left
from collections.abc import Iterator
from unicodedata import normalize

from ahocorasick_rs import AhoCorasick

from policy.budget import Budget
from policy.documents import MAX_PATTERN_MATCH_CHARS, DenyList, PolicyDocument
from policy.recognisers.recogniser import Recogniser
from policy.text.patterns import BadPattern, compiled, form
from policy.text.views import is_of_word, view

DENIED = "denied"
MOST_INSTRUCTIONS = 50_000
"""Of RE2's programs: ``foo.{0,64}bar`` has 600, and a thousand patterns of a few words have 30,000. At worst one costs
two nanoseconds at every character.
"""

_WINDOW = 4096
PRIORITY = 110
# Turkish has two letters i, whose other cases are each other's in English.
_DOTS = frozenset("\u0130\u0131")


class _Lower(dict[int, str]):
    """Lower case by the character, so that places stay; any white space reads as a space."""

    def __missing__(self, code: int) -> str:
        read = self[code] = _lower(chr(code))
        return read


def _lower(character: str) -> str:
    if character.isspace():
        return " "
    if character in _DOTS:
        return "i"
    lower = character.casefold()
    return lower if len(lower) == 1 else character.lower()


_LOWER = _Lower()


def _is_unspaced(character: str) -> bool:
    """True for scripts that put no space between words: Thai to Khmer, kana, Chinese."""
    code = ord(character)
    return 0x0E00 <= code < 0x1100 or 0x1780 <= code < 0x1800 or 0x2E80 <= code < 0xAC00 or 0xF900 <= code < 0xFB00


def _is_joined(left: str, right: str) -> bool:
    """True if two neighbouring characters belong to one word."""
    return is_of_word(left) and is_of_word(right) and not (_is_unspaced(left) or _is_unspaced(right))


class PhraseList:
    """Finds phrases in views, whatever their case."""

    def __init__(self, deny: DenyList) -> None:
        # Accents are one character with their letter, or two.
        spelled = {normalize(form, phrase) for phrase in deny.phrases for form in ("NFC", "NFD")}
        # As is ss with its sharp s in capitals.
        spelled |= {phrase.casefold() for phrase in deny.phrases if "\u00df" in phrase.lower()}.union(deny.phrases)
        self._phrases = sorted({view(phrase).text.translate(_LOWER) for phrase in spelled} - {""})
        self._first = {phrase[0] for phrase in self._phrases}
        self._longest = max(map(len, self._phrases), default=0)
        self._inside_words = deny.inside_words
        self._automaton = AhoCorasick(self._phrases)

    def find(self, text: str, start: int, budget: Budget) -> Iterator[tuple[int, int]]:
        """Yield where phrases stand from ``start`` on; those that overlap are one, as far as that is not too long.

        Raises ScanTooLong.
        """
        held: tuple[int, int] | None = None
        for begin, end in self._matches(text, start, budget):
            if not self._is_whole(text, begin, end):
                continue
            if held is not None and begin < held[1]:
                # One that begins inside of what is long enough is lost: else a phrase said again and again never ends.
                if held[1] - held[0] < MAX_PATTERN_MATCH_CHARS:
                    held = held[0], max(end, held[1])
                continue
            if held is not None:
                yield held
            held = begin, end
        if held is not None:
            yield held

    def _matches(self, text: str, start: int, budget: Budget) -> Iterator[tuple[int, int]]:
        """Yield where phrases stand, from the left; by windows, since phrases inside of phrases are many matches."""
        lower = text[start:].translate(_LOWER)
        for offset in range(0, len(lower), _WINDOW):
            part = lower[offset : offset + _WINDOW + self._longest]
            matches = self._automaton.find_matches_as_indexes(part, overlapping=True)
            at = start + offset
            yield from sorted((begin + at, end + at) for _, begin, end in matches if begin < _WINDOW)
            if offset + _WINDOW < len(lower):
                budget.check()

    def _is_whole(self, text: str, begin: int, end: int) -> bool:
        if self._inside_words:
            return True
        cuts_left = begin > 0 and _is_joined(text[begin - 1], text[begin])
        return not cuts_left and not (end < len(text) and _is_joined(text[end - 1], text[end]))

    def opens_at(self, text: str, start: int) -> int:
        """Where the longest beginning of a phrase, or whole phrase, that reaches the end of the text begins."""
        offset = max(start, len(text) - self._longest)
        lower = text[offset:].translate(_LOWER)
        for place, character in enumerate(lower):
            if character not in self._first:
                continue
            whole_place = place + offset
            if not self._inside_words and whole_place and _is_joined(text[whole_place - 1], text[whole_place]):
                continue
            if self._begins_phrase(lower[place:]):
                return whole_place
        return len(text)

    def _begins_phrase(self, text: str) -> bool:
        index = bisect_left(self._phrases, text)
        return index < len(self._phrases) and self._phrases[index].startswith(text)


def check_size(document: PolicyDocument) -> None:
    """Raise BadPattern if the patterns of a policy are more than MOST_INSTRUCTIONS together: each is a step that RE2
    may have to take at every character. Asked when a policy is stored; one that is stored is followed.
    """
    total = 0
    for rule in document.rules:
        for number, pattern in enumerate(rule.deny.patterns if rule.deny is not None else ()):
            size = compiled(form(_expression(pattern)).whole).programsize
            total += size
            if total > MOST_INSTRUCTIONS:
                raise BadPattern(
                    f"rule {rule.id}: up to `patterns[{number}]`, of {size} instructions, the policy's patterns have "
                    f"{total} instructions, and {MOST_INSTRUCTIONS} are possible: bring the counts in {{m,n}} down, or "
                    "deny words as `phrases`"
                )


def _expression(pattern: str) -> str:
    return f"(?i:{view(pattern).text})"


def pattern_recognisers(rule_id: str, deny: DenyList) -> list[Recogniser]:
    """Return the patterns of a list as recognisers."""
    return [
        Recogniser(
            f"{rule_id}.{number}",
            DENIED,
            PRIORITY,
            _expression(pattern),
            lambda candidate, _: [(0, len(candidate))] if candidate else [],
            same=str.casefold,
            is_foreign=True,
        )
        for number, pattern in enumerate(deny.patterns)
    ]
