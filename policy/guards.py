"""The compiled rules of a policy for one stage: they find matches in a normalised text.

If matches overlap, the recogniser with the higher priority gets the shared characters. The other match keeps the rest,
so that every character of a finding is covered.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from headrace.policy.budget import Budget
from headrace.policy.deny import DENIED, PRIORITY, PhraseList, pattern_recognisers
from headrace.policy.documents import Action, PolicyDocument, Rule, Stage
from headrace.policy.placeholders import PATTERN
from headrace.policy.recognisers.catalogue import RECOGNISERS
from headrace.policy.recognisers.recogniser import Kind, Recogniser
from headrace.policy.scanning import PatternCandidate, Scanner

_KEEP_LAST_FOUR = frozenset([Kind.CARD, Kind.IBAN, Kind.PHONE, Kind.US_SSN, Kind.NATIONAL_ID])
_FINDER_PRIORITY = 40
NOTHING_DONE: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Match:
    """A span of a normalised text and its rule. ``rule`` None is a placeholder, which may be restored."""

    start: int
    end: int
    recogniser: Recogniser
    rule: Rule | None
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The result of a scan: the matches, and all candidates of the recognisers, rejected ones included."""

    pieces: list[Match]
    candidates: list[PatternCandidate]

    def unsplittable(self) -> Iterator[tuple[int, int]]:
        """Yield the spans that must be decided together: matches, each from the start of its candidate."""
        for found in self.candidates:
            if found.spans:
                yield found.start, found.done
        yield from ((piece.start, piece.end) for piece in self.pieces)

    def done(self, certain: int) -> dict[str, int]:
        """Return the positions up to which recognisers have scanned, if beyond ``certain``."""
        return {found.recogniser.name: found.done for found in self.candidates if found.start < certain < found.done}


PUT_BACK = Recogniser("placeholder", "placeholder", 120, PATTERN, lambda text, _: [(0, len(text))])


def _phrases_of(rule: Rule) -> Recogniser:
    return Recogniser(f"{rule.id}.phrases", DENIED, PRIORITY, "", lambda _text, _before: [], same=str.casefold)


class Guard:
    """The compiled rules of one stage. Used for every text, and thread-safe."""

    def __init__(self, document: PolicyDocument, stage: Stage) -> None:
        self.stage = stage
        rules = tuple(document.rules_for(stage))
        self._by_kind: dict[str, Rule] = {}
        for rule in rules:
            for kind in rule.kinds:
                self._by_kind.setdefault(kind, rule)
        recognisers = [one for one in RECOGNISERS if one.kind in self._by_kind]
        self._by_name: dict[str, Rule | None] = {one.name: self._by_kind[one.kind] for one in recognisers}
        self._phrases: list[tuple[PhraseList, Recogniser, Rule]] = []
        for rule in rules:
            if rule.deny is not None:
                patterns = pattern_recognisers(rule.id, rule.deny)
                recognisers += patterns
                self._by_name |= {one.name: rule for one in patterns}
                if rule.deny.phrases:
                    self._phrases.append((PhraseList(rule.deny), _phrases_of(rule), rule))
        if stage is Stage.OUTPUT and any(rule.restore for rule in document.rules):
            recognisers.append(PUT_BACK)
            self._by_name[PUT_BACK.name] = None
        self._scanner = Scanner(recognisers)
        self.whole_rules = tuple(rule for rule in rules if rule.needs_all)
        limits = [(rule.max_chars, rule) for rule in rules if rule.max_chars is not None]
        self.limit = min(limits, key=lambda limit: limit[0], default=None)

    def look(
        self, text: str, start: int, done: Mapping[str, int] = NOTHING_DONE, budget: Budget | None = None
    ) -> ScanResult:
        """Find all matches that start at ``start`` or later. ``done`` is the result of ``ScanResult.done``.

        Raises ScanTooLong if the budget is used up.
        """
        pieces: list[Match] = []
        budget = budget or Budget()
        candidates = self._scanner.find(text, start, done, budget)
        for found in candidates:
            rule = self._by_name[found.recogniser.name]
            pieces += [Match(*span, found.recogniser, rule, found.goes_on) for span in found.spans]
        for phrases, recogniser, rule in self._phrases:
            pieces += [Match(*span, recogniser, rule) for span in phrases.find(text, start, budget)]
        return ScanResult(_drop_nested(pieces), candidates)

    def named(self, found: Iterable[tuple[int, int, Kind]]) -> Iterator[Match]:
        """Yield the findings of an entity finder that have a rule."""
        for start, end, kind in found:
            if rule := self._by_kind.get(kind):
                yield Match(start, end, Recogniser(f"name.{kind}", kind, _FINDER_PRIORITY, "", _nothing), rule)

    def opens_at(self, text: str, start: int) -> int:
        """Return the position from which matches are not certain yet."""
        return min(
            [self._scanner.opens_at(text, start), *(phrases.opens_at(text, start) for phrases, _, _ in self._phrases)]
        )

    def rest(self, recogniser: Recogniser, text: str) -> int:
        """Return the number of characters at the start of ``text`` that continue an unfinished match."""
        return self._scanner.rest(recogniser.name, text)


def _drop_nested(pieces: list[Match]) -> list[Match]:
    """Drop matches that start inside an unfinished match, because that match covers all its characters."""
    long = [piece for piece in pieces if piece.goes_on]
    if not long:
        return pieces
    return [one for one in pieces if one.goes_on or not any(each.start <= one.start < each.end for each in long)]


def _nothing(_text: str, _before: str) -> list[tuple[int, int]]:
    return []


def group_overlaps(pieces: list[Match]) -> Iterator[list[Match]]:
    """Yield groups of overlapping matches, from the left."""
    group: list[Match] = []
    end = 0
    for piece in sorted(pieces, key=lambda piece: piece.start):
        if group and piece.start >= end:
            yield group
            group = []
        group.append(piece)
        end = max(end, piece.end) if len(group) > 1 else piece.end
    if group:
        yield group


def resolve_overlaps(group: list[Match]) -> list[Match]:
    """Return matches without overlaps, from the left, that cover the same characters as ``group``."""
    if len(group) == 1:
        return group
    kept: list[Match] = []
    starts: list[int] = []
    for piece in sorted(group, key=lambda piece: (-piece.recogniser.priority, piece.start - piece.end, piece.start)):
        for start, end in _uncovered(kept, starts, piece):
            at = bisect_left(starts, start)
            starts.insert(at, start)
            kept.insert(at, replace(piece, start=start, end=end))
    return kept


def _uncovered(kept: list[Match], starts: list[int], piece: Match) -> list[tuple[int, int]]:
    """Return the spans of a match that no other match covers yet."""
    gaps = []
    place = piece.start
    at = max(0, bisect_left(starts, piece.start) - 1)
    while at < len(kept) and kept[at].start < piece.end:
        if kept[at].end > place:
            if kept[at].start > place:
                gaps.append((place, kept[at].start))
            place = kept[at].end
        at += 1
    if place < piece.end:
        gaps.append((place, piece.end))
    return gaps


def masked(kind: str, value: str) -> str:
    """Return stars for letters and digits. Of numbers the last four characters stay, to identify them."""
    keep = 4 if kind in _KEEP_LAST_FOUR else 0
    left = sum(map(str.isalnum, value)) - keep
    shown = []
    for character in value:
        hidden = character.isalnum() and left > 0
        left -= hidden
        shown.append("*" if hidden else character)
    return "".join(shown)


def blocking_rule(group: Iterable[Match]) -> Rule | None:
    """Return the first rule of a match that blocks, or None."""
    return next((piece.rule for piece in group if piece.rule is not None and piece.rule.action is Action.BLOCK), None)
