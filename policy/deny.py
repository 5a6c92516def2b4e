"""Deny lists: phrases are matched by one Aho-Corasick automaton, patterns by RE2 together with the recognisers."""

from bisect import bisect_left
from collections.abc import Iterator
from unicodedata import normalize

from ahocorasick_rs import AhoCorasick

from headrace.policy.budget import Budget
from headrace.policy.documents import MAX_PATTERN_MATCH_CHARS, DenyList, PolicyDocument
from headrace.policy.recognisers.recogniser import Recogniser
from headrace.policy.text.normalisation import is_word_character, normalise
from headrace.policy.text.patterns import BadPattern, compiled, parse_pattern

DENIED = "denied"
MOST_INSTRUCTIONS = 50_000
"""The most RE2 instructions in the patterns of a policy. ``foo.{0,64}bar`` has 600, a thousand patterns of a few words
have 30,000. In the worst case, an instruction costs two nanoseconds at every character.
"""

_WINDOW = 4096
PRIORITY = 110
# Turkish has a dotted and a dotless i, each with its own capital letter. English pairs them differently.
_DOTS = frozenset("\u0130\u0131")


class _Lower(dict[int, str]):
    """Maps each character to one lower-case character, so that positions stay. White space becomes a space."""

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
    """Return True for scripts without spaces between words: Thai to Khmer, kana, Chinese."""
    code = ord(character)
    return 0x0E00 <= code < 0x1100 or 0x1780 <= code < 0x1800 or 0x2E80 <= code < 0xAC00 or 0xF900 <= code < 0xFB00


def _is_joined(left: str, right: str) -> bool:
    """Return True if two neighbouring characters belong to one word."""
    return is_word_character(left) and is_word_character(right) and not (_is_unspaced(left) or _is_unspaced(right))


class PhraseList:
    """Finds phrases in normalised texts. Case is ignored."""

    def __init__(self, deny: DenyList) -> None:
        # A letter with an accent is one character or two.
        spelled = {normalize(form, phrase) for phrase in deny.phrases for form in ("NFC", "NFD")}
        # ß is SS in capitals.
        spelled |= {phrase.casefold() for phrase in deny.phrases if "\u00df" in phrase.lower()}.union(deny.phrases)
        self._phrases = sorted({normalise(phrase).text.translate(_LOWER) for phrase in spelled} - {""})
        self._first = {phrase[0] for phrase in self._phrases}
        self._longest = max(map(len, self._phrases), default=0)
        self._inside_words = deny.inside_words
        self._automaton = AhoCorasick(self._phrases)

    def find(self, text: str, start: int, budget: Budget) -> Iterator[tuple[int, int]]:
        """Yield the spans of phrases from ``start`` on. Overlapping spans are merged up to a length limit.

        Raises ScanTooLong.
        """
        held: tuple[int, int] | None = None
        for begin, end in self._matches(text, start, budget):
            if not self._is_whole(text, begin, end):
                continue
            if held is not None and begin < held[1]:
                # Beyond the limit an overlapping phrase is dropped. Otherwise a repeated phrase would never end.
                if held[1] - held[0] < MAX_PATTERN_MATCH_CHARS:
                    held = held[0], max(end, held[1])
                continue
            if held is not None:
                yield held
            held = begin, end
        if held is not None:
            yield held

    def _matches(self, text: str, start: int, budget: Budget) -> Iterator[tuple[int, int]]:
        """Yield the spans of phrases from the left. In windows, because nested phrases give many matches."""
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
        """Return the start of the longest whole or partial phrase that reaches the end of the text."""
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
    """Raise BadPattern if the patterns of a policy have more than MOST_INSTRUCTIONS instructions together.

    RE2 may execute each of them at every character. Checked only when a policy is stored.
    """
    total = 0
    for rule in document.rules:
        for number, pattern in enumerate(rule.deny.patterns if rule.deny is not None else ()):
            size = compiled(parse_pattern(_expression(pattern)).whole).programsize
            total += size
            if total > MOST_INSTRUCTIONS:
                raise BadPattern(
                    f"rule {rule.id}: up to `patterns[{number}]`, of {size} instructions, the policy's patterns have "
                    f"{total} instructions, and {MOST_INSTRUCTIONS} are possible: bring the counts in {{m,n}} down, or "
                    "deny words as `phrases`"
                )


def _expression(pattern: str) -> str:
    return f"(?i:{normalise(pattern).text})"


def pattern_recognisers(rule_id: str, deny: DenyList) -> list[Recogniser]:
    """Return the patterns of a deny list as recognisers."""
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
