"""Runs many recognisers over a text, and finds how much of an unfinished text is certain.

A whole text and its pieces give the same findings, because a candidate depends only on its own characters and a bounded
number of characters before it. ``Scanner.opens_at`` is the position up to which later text cannot change a finding.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import re2

from headrace.policy.budget import Budget
from headrace.policy.recognisers.recogniser import CONTEXT_CHARS, MAX_MATCH_CHARS, Recogniser
from headrace.policy.text.patterns import MAX_MEM, ParsedPattern, compiled, options, parse_pattern

WINDOW = 8192
"""The bytes of one search with a tenant's pattern. A search cannot be stopped, so the budget is checked between two.
"""
_COUNTED = re.compile(r"\{(\d+),(?:\d\d+)\}")
"""A count with a maximum. The search that selects recognisers leaves the maximum out: it may select one too many, but
its automaton has fewer states. A long random text meets a new state with each character.
"""
_LEAST_MEM = 256 << 10
_MOST_UTF8 = 4


@dataclass(frozen=True, slots=True)
class PatternCandidate:
    """A candidate from ``start`` to ``end``, and the spans in it that passed the check.

    ``goes_on``: it reached the maximum length, and the following characters of its ``tail`` class belong to it.
    """

    start: int
    end: int
    recogniser: Recogniser
    spans: tuple[tuple[int, int], ...]
    goes_on: bool = False

    @property
    def done(self) -> int:
        """The position where the next candidate may start: the end of the last span, or of a rejected candidate."""
        return self.spans[-1][1] if self.spans else self.end


class _Utf8Text:
    """A text in UTF-8 for RE2. Converts between byte positions and text positions, fastest in rising order."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.bytes = text.encode()
        self._is_ascii = len(self.bytes) == len(text)
        self._at = (0, 0)

    def encoded(self, place: int) -> int:
        """Return the byte position of a text position."""
        return place if self._is_ascii else len(self.text[:place].encode())

    def decoded(self, place: int) -> int:
        """Return the text position of a byte position."""
        if self._is_ascii:
            return place
        known, here = self._at
        if place < known:
            known, here = 0, 0
        self._at = place, here + len(self.bytes[known:place].decode())
        return self._at[1]


class _CompiledRecogniser:
    """A recogniser with its compiled expression. ``reach`` is the maximum length of a tenant's match in bytes."""

    def __init__(self, recogniser: Recogniser, shape: ParsedPattern, max_mem: int) -> None:
        self.recogniser = recogniser
        self._reach = _MOST_UTF8 * (shape.longest or 0) if recogniser.is_foreign else 0
        self._expression = compiled(shape.whole, max_mem)
        self._tail = None if recogniser.tail is None else compiled(f"(?:{parse_pattern(recogniser.tail).whole})*")

    def candidates(self, text: str, start: int, budget: Budget) -> Iterator[PatternCandidate]:
        """Yield the candidates from ``start`` on, from the left."""
        source = _Utf8Text(text)
        place = source.encoded(start)
        search = self._search_by_window if self._reach else self._search
        while place < len(source.bytes) and (match := search(source.bytes, place, budget)) is not None:
            budget.check_often()
            begin, end = source.decoded(match.start()), source.decoded(match.end())
            found = self._limited(text, begin) if end - begin >= MAX_MATCH_CHARS else self._decided(text, begin, end)
            if found is None or found.end == begin:
                place = match.start() + len(text[begin : begin + 1].encode())
                continue
            yield found
            place = match.end() if found.done == end else match.start() + len(text[begin : found.done].encode())

    def _search(self, data: bytes, place: int, _budget: Budget) -> Any:
        return self._expression.search(data, place)

    def _search_by_window(self, data: bytes, place: int, budget: Budget) -> Any:
        """Search window by window. The result is that of one search, because no match is longer than the reach."""
        while place < len(data):
            after = place + WINDOW
            while after < len(data) and data[after] & 0xC0 == 0x80:
                after += 1  # not in the middle of a character
            match = self._expression.search(data, place, min(len(data), after + self._reach))
            if match is not None and (match.start() < after or after >= len(data)):
                return match
            place = after
            if place < len(data):
                budget.check()
        return None

    def _limited(self, text: str, begin: int) -> PatternCandidate | None:
        cut = self._expression.match(text[max(0, begin - 1) : begin + MAX_MATCH_CHARS], begin and 1)
        return None if cut is None else self._long(text, begin, begin - (begin and 1) + cut.end())

    def _decided(self, text: str, begin: int, end: int) -> PatternCandidate:
        before = text[max(0, begin - CONTEXT_CHARS) : begin]
        spans = tuple((begin + s, begin + e) for s, e in self.recogniser.check(text[begin:end], before))
        return PatternCandidate(begin, end, self.recogniser, spans)

    def _long(self, text: str, begin: int, end: int) -> PatternCandidate:
        found = self._decided(text, begin, end)
        if self._tail is None or end - begin < MAX_MATCH_CHARS or not found.spans:
            return found
        tail_end = end + self._tail.match(text[end:]).end()
        return PatternCandidate(begin, tail_end, self.recogniser, ((found.spans[0][0], tail_end),), goes_on=True)

    def rest(self, text: str) -> int:
        """Return the number of characters at the start of ``text`` that continue an unfinished match."""
        return 0 if self._tail is None else int(self._tail.match(text).end())


class Scanner:
    """Runs a set of recognisers.

    One search for all built-in recognisers selects those with a match. Tenants' patterns are searched one by one:
    together they may need an automaton that grows with every character. For one pattern, RE2 limits its memory.
    """

    def __init__(self, recognisers: Sequence[Recogniser]) -> None:
        ours = [one for one in recognisers if not one.is_foreign]
        foreign = [one for one in recognisers if one.is_foreign]
        forms = [parse_pattern(one.pattern) for one in ours]
        foreign_forms = [parse_pattern(one.pattern) for one in foreign]
        # The patterns of a tenant share one memory limit.
        each_mem = max(_LEAST_MEM, MAX_MEM // max(1, len(foreign)))
        self._ours = [_CompiledRecogniser(one, shape, MAX_MEM) for one, shape in zip(ours, forms, strict=True)]
        self._foreign = [
            _CompiledRecogniser(one, shape, each_mem) for one, shape in zip(foreign, foreign_forms, strict=True)
        ]
        self._by_name = {one.recogniser.name: one for one in (*self._ours, *self._foreign)}
        self._opening = _opening(forms)
        self._foreign_opening = _opening(foreign_forms)
        self._foreign_chars = max((shape.longest or 0 for shape in foreign_forms), default=0)
        self._any = _set([_COUNTED.sub(r"{\1,}", shape.whole) for shape in forms])
        self._needs = sorted({one.needs for one in ours if one.needs is not None})
        self._any_need = _set(self._needs)

    def find(self, text: str, start: int, done: Mapping[str, int], budget: Budget) -> list[PatternCandidate]:
        """Return every candidate from ``start`` on. Earlier text is only context.

        ``done`` has the position up to which a recogniser has scanned already, by name. Raises ScanTooLong.
        """
        found: list[PatternCandidate] = []
        for one in (*self._relevant(text, start), *self._foreign):
            budget.check_often()
            found += one.candidates(text, max(start, done.get(one.recogniser.name, start)), budget)
        return found

    def _relevant(self, text: str, start: int) -> list[_CompiledRecogniser]:
        """Return the built-in recognisers with a match of their pattern and, if they need one, of their words."""
        if self._any is None:
            return []
        # With the character before, because it decides if a word starts here.
        which = [self._ours[index] for index in self._any.Match(text[max(0, start - 1) :]) or ()]
        if self._any_need is None or not any(one.recogniser.needs for one in which):
            return which
        present = {self._needs[index] for index in self._any_need.Match(text) or ()}
        return [one for one in which if one.recogniser.needs is None or one.recogniser.needs in present]

    def opens_at(self, text: str, start: int) -> int:
        """Return the start of the longest match that may continue, or the length of the text if there is none."""
        return min(
            _open_from(self._opening, text, max(start, len(text) - MAX_MATCH_CHARS + 1)),
            _open_from(self._foreign_opening, text, max(start, len(text) - self._foreign_chars)),
        )

    def rest(self, name: str, text: str) -> int:
        """Return the number of characters at the start of ``text`` that continue an unfinished match of ``name``."""
        return self._by_name[name].rest(text)


def _set(expressions: Sequence[str]) -> Any:
    """Return the compiled set of the expressions, or None without expressions."""
    if not expressions:
        return None
    found = re2.Set.SearchSet(options())
    for expression in expressions:
        found.Add(expression)
    found.Compile()
    return found


def _opening(forms: Sequence[ParsedPattern]) -> Any:
    return compiled(rf"(?:{'|'.join(each.opening for each in forms)})\z") if forms else None


def _open_from(opening: Any, text: str, start: int) -> int:
    if opening is None or start >= len(text):
        return len(text)
    return int(opening.search(text, start).start())


def last_unsplit(certain: int, spans: Iterable[tuple[int, int]]) -> int:
    """Return the last position up to ``certain`` that is not inside a span."""
    for start, end in sorted(spans, reverse=True):
        if start < certain < end:
            certain = start
    return certain
