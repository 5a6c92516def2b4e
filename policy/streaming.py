"""Applies a policy to a text that arrives in pieces. Text is released only when no later piece can change the result.

Text that may become a match, or a longer one, is held back: an unfinished word, a row of digits, the start of a denied
phrase. Everything before it is released. So at most one match of MAX_MATCH_CHARS characters is held back, with the text
that overlaps it. Kinds without a maximum length (web tokens, private keys, API keys) are decided at that length, and
the rest of the match is dropped when it arrives.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from headrace.policy.budget import Budget
from headrace.policy.documents import Action, Rule, Stage
from headrace.policy.guards import Guard, Match, blocking_rule, group_overlaps, masked, resolve_overlaps
from headrace.policy.placeholders import MOST_COMPARED_CHARS, PlaceholderMap
from headrace.policy.recognisers.recogniser import CONTEXT_CHARS, MAX_MATCH_CHARS, EntityFinder, Recogniser
from headrace.policy.scanning import last_unsplit
from headrace.policy.text.normalisation import NormalisedText, normalise

_LONG = 256
_SHARE = 4
_SHARE_AT_ENDS = 16
_SPACE = re.compile(r"\s")


@dataclass(frozen=True, slots=True)
class Hit:
    """One finding of a rule. ``start`` and ``end`` are positions in the original text."""

    rule_id: str
    kind: str
    action: Action
    start: int
    end: int


def counted(hits: Iterable[Hit]) -> list[dict[str, Any]]:
    """Return the number of hits by rule, kind and action."""
    counts = Counter((hit.rule_id, str(hit.kind), hit.action.value) for hit in hits)
    return [{"rule": r, "kind": k, "action": a, "count": count} for (r, k, a), count in sorted(counts.items())]


class GuardedText:
    """Takes one text in pieces and releases the checked part of it. Not thread-safe."""

    def __init__(
        self, guard: Guard, vault: PlaceholderMap, finder: EntityFinder | None = None, budget: Budget | None = None
    ) -> None:
        """Without ``budget``, the text gets its own."""
        self._guard = guard
        self._budget = budget or Budget()
        self._vault = vault
        self._finder = finder
        self._context = ""
        self._pending = ""
        self._offset = 0
        self._unfinished: Recogniser | None = None
        # The number of held characters at the last scan.
        self._num_seen = 0
        # How far beyond the certain position each recogniser has scanned already, without a finding.
        self._ahead: dict[str, int] = {}
        self.hits: list[Hit] = []
        self.blocked_by: str | None = None
        """The rule that blocked the text. Nothing more is released."""

    @property
    def num_held(self) -> int:
        """The number of characters that are held back."""
        return len(self._pending)

    def feed(self, text: str) -> str:
        """Take a piece and return the text that is certain now. Raises ScanTooLong: then nothing may be released."""
        return self._take(text, is_all=False)

    def finish(self, text: str = "") -> str:
        """Take the last piece and return the rest. Raises as ``feed``."""
        return self._take(text, is_all=True)

    def _take(self, text: str, *, is_all: bool) -> str:
        if self.blocked_by is not None:
            return ""
        self._budget.begin(len(text))
        try:
            return self._taken(text, is_all=is_all)
        finally:
            self._budget.end()

    def _taken(self, text: str, *, is_all: bool) -> str:
        self._pending += text
        limit = self._guard.limit
        if limit is None or self._offset + len(self._pending) <= limit[0]:
            return self._settle(is_all=is_all)
        self._pending = self._pending[: limit[0] - self._offset]
        self._num_seen = 0
        out = self._settle(is_all=False)
        if self.blocked_by is None:
            self._block(limit[1], "max_chars", limit[0], limit[0])
        return out

    def _block(self, rule: Rule, kind: str, start: int, end: int) -> None:
        self.blocked_by = rule.id
        self._pending = ""
        self.hits.append(Hit(rule.id, kind, rule.action, start, end))

    def _settle(self, *, is_all: bool) -> str:
        if not is_all and not self._is_due():
            return ""
        if self._unfinished is not None:
            self._drop_rest(self._unfinished)
        seen = normalise(self._pending, self._context)
        start = len(self._context)
        text = self._context + seen.text
        certain = len(text) if is_all else self._guard.opens_at(text, start)
        if certain <= start and not is_all:
            self._wait()
            return ""
        ahead = {name: start + num for name, num in self._ahead.items()}
        look = self._guard.look(text, start, ahead, self._budget)
        pieces = look.pieces
        if self._finder is not None and is_all:
            pieces += self._guard.named(self._finder.find(text))
        if not is_all:
            certain = last_unsplit(certain, look.unsplittable())
            certain = self._follow(pieces, certain, len(text))
        moved = certain - start
        kept = {name: ahead - moved for name, ahead in self._ahead.items() if ahead > moved}
        self._ahead = kept | {name: place - certain for name, place in look.done(certain).items()}
        out = self._replaced([piece for piece in pieces if piece.start < certain], seen, text, certain)
        self._wait()
        return out

    def _wait(self) -> None:
        self._num_seen = len(self._pending)

    def _is_due(self) -> bool:
        """Scan again only when a long match has grown by a quarter, because each scan starts at the match's start.

        A scan with every piece would take time quadratic in the length of the match. A sixteenth is enough where the
        match may end: behind white space, and at the maximum length.
        """
        num_new = len(self._pending) - self._num_seen
        if self._num_seen < _LONG or num_new * _SHARE >= self._num_seen:
            return True
        if num_new * _SHARE_AT_ENDS < self._num_seen:
            return False
        return len(self._pending) >= MAX_MATCH_CHARS or _SPACE.search(self._pending, self._num_seen) is not None

    def _drop_rest(self, recogniser: Recogniser) -> None:
        """Drop the rest of a match that is decided already."""
        seen = normalise(self._pending, self._context)
        num = self._guard.rest(recogniser, seen.text)
        if num < len(seen.text):
            self._unfinished = None
        if num:
            cut = seen.span(0, num)[1]
            self._pending = self._pending[cut:]
            self._offset += cut
            self._context = (self._context + seen.text[:num])[-CONTEXT_CHARS:]

    def _follow(self, pieces: list[Match], certain: int, end: int) -> int:
        """Return the certain position: the end of the text if it ends inside an unfinished match."""
        unfinished = [piece.recogniser for piece in pieces if piece.goes_on and piece.end == end]
        if not unfinished:
            return certain
        self._unfinished = max(unfinished, key=lambda recogniser: recogniser.priority)
        return end

    def _replaced(self, pieces: list[Match], seen: NormalisedText, text: str, certain: int) -> str:
        start = len(self._context)
        out: list[str] = []
        done = 0
        for group in group_overlaps(pieces):
            shared = resolve_overlaps(group)
            if (rule := blocking_rule(shared)) is not None:
                out.append(self._pending[done : seen.original(group[0].start - start)])
                culprit = next(piece for piece in shared if piece.rule is rule)
                begin, end = seen.span(culprit.start - start, culprit.end - start)
                self._block(rule, culprit.recogniser.kind, self._offset + begin, self._offset + end)
                return "".join(out)
            for piece in shared:
                begin, end = seen.span(piece.start - start, piece.end - start)
                out += [self._pending[done:begin], self._replacement(piece, text, begin, end)]
                done = end
        cut = seen.original(certain - start)
        out.append(self._pending[done:cut])
        self._pending = self._pending[cut:]
        self._offset += cut
        self._context = text[max(0, certain - CONTEXT_CHARS) : certain]
        return "".join(out)

    def _replacement(self, piece: Match, text: str, begin: int, end: int) -> str:
        """Return the replacement of a match, and record the hit."""
        value, rule, kind = self._pending[begin:end], piece.rule, piece.recogniser.kind
        if rule is None:
            return self._vault.values.get(value, value)
        if rule.action is Action.ALLOW:
            return value
        self.hits.append(Hit(rule.id, kind, rule.action, self._offset + begin, self._offset + end))
        if rule.action is Action.MASK:
            return masked(kind, value[:MOST_COMPARED_CHARS])
        if rule.action is Action.REDACT:
            read = text[piece.start : piece.end][:MOST_COMPARED_CHARS]
            # A value that the model wrote is never restored.
            is_restorable = rule.restore and self._guard.stage is Stage.INPUT
            return self._vault.name(kind, piece.recogniser.same(read), value, restorable=is_restorable)
        return value
