"""A text under a policy, as it comes: nothing leaves before it is certain.

What may still become, or grow, a match is held back: the word that is being written, a row of digits, the beginning of
a denied phrase. Everything before is decided and leaves. So at most one match of MAX_MATCH_CHARS characters is held
(and what overlaps it); kinds without a greatest length (web tokens, private keys, API keys) are decided when they have
become so long, and what still belongs to them is dropped as it comes.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from policy.budget import Budget
from policy.documents import Action, Rule, Stage
from policy.guards import Guard, Piece, blocks, clusters, masked, shared_out
from policy.placeholders import MOST_COMPARED_CHARS, Vault
from policy.recognisers.recogniser import CONTEXT_CHARS, EntityFinder, Recogniser
from policy.scanning import pulled
from policy.text.views import View, view

_LONG = 256
_SHARE = 16


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that found something: ``start`` and ``end`` are places in the text as it came."""

    rule_id: str
    kind: str
    action: Action
    start: int
    end: int


def counted(hits: Iterable[Hit]) -> list[dict[str, Any]]:
    """Return how often each rule found what: rule, kind, action, count."""
    counts = Counter((hit.rule_id, str(hit.kind), hit.action.value) for hit in hits)
    return [{"rule": r, "kind": k, "action": a, "count": count} for (r, k, a), count in sorted(counts.items())]


class GuardedText:
    """Takes one text in pieces and gives back what of it may leave. One thread at a time."""

    def __init__(
        self, guard: Guard, vault: Vault, finder: EntityFinder | None = None, budget: Budget | None = None
    ) -> None:
        """``budget`` is for this text alone unless it is given."""
        self._guard = guard
        self._budget = budget or Budget()
        self._vault = vault
        self._finder = finder
        self._context = ""
        self._pending = ""
        self._offset = 0
        self._going_on: Recogniser | None = None
        # Characters that must be held before it is asked again what is certain.
        self._next_look = 0
        # How far behind what is certain recognisers have looked already, without finding anything there.
        self._ahead: dict[str, int] = {}
        self.hits: list[Hit] = []
        self.blocked_by: str | None = None
        """The rule that ended the text. Nothing leaves any more."""

    @property
    def num_held(self) -> int:
        """Characters that are held back."""
        return len(self._pending)

    def feed(self, text: str) -> str:
        """Take a piece; return what is certain by it. Raises ScanTooLong: nothing may leave any more then."""
        return self._take(text, is_all=False)

    def finish(self, text: str = "") -> str:
        """Take the last piece; return the rest. Raises as ``feed`` does."""
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
        self._next_look = 0
        out = self._settle(is_all=False)
        if self.blocked_by is None:
            self._block(limit[1], "max_chars", limit[0], limit[0])
        return out

    def _block(self, rule: Rule, kind: str, start: int, end: int) -> None:
        self.blocked_by = rule.id
        self._pending = ""
        self.hits.append(Hit(rule.id, kind, rule.action, start, end))

    def _settle(self, *, is_all: bool) -> str:
        if not is_all and len(self._pending) < self._next_look:
            return ""
        if self._going_on is not None:
            self._drop_rest(self._going_on)
        seen = view(self._pending, self._context)
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
            certain = pulled(certain, look.held_together())
            certain = self._follow(pieces, certain, len(text))
        moved = certain - start
        kept = {name: ahead - moved for name, ahead in self._ahead.items() if ahead > moved}
        self._ahead = kept | {name: place - certain for name, place in look.done(certain).items()}
        out = self._replaced([piece for piece in pieces if piece.start < certain], seen, text, certain)
        self._wait()
        return out

    def _wait(self) -> None:
        """Look again only when a long match has grown by a part: each look begins at the match's beginning.

        With every piece it took a time that grew with the square of the match's length.
        """
        num_held = len(self._pending)
        self._next_look = num_held + num_held // _SHARE if num_held >= _LONG else 0

    def _drop_rest(self, recogniser: Recogniser) -> None:
        """Drop what still belongs to a match that was decided already."""
        seen = view(self._pending, self._context)
        num = self._guard.rest(recogniser, seen.text)
        if num < len(seen.text):
            self._going_on = None
        if num:
            cut = seen.span(0, num)[1]
            self._pending = self._pending[cut:]
            self._offset += cut
            self._context = (self._context + seen.text[:num])[-CONTEXT_CHARS:]

    def _follow(self, pieces: list[Piece], certain: int, end: int) -> int:
        """Everything is certain if the text ends inside a match that only goes on."""
        going_on = [piece.recogniser for piece in pieces if piece.goes_on and piece.end == end]
        if not going_on:
            return certain
        self._going_on = max(going_on, key=lambda recogniser: recogniser.priority)
        return end

    def _replaced(self, pieces: list[Piece], seen: View, text: str, certain: int) -> str:
        start = len(self._context)
        out: list[str] = []
        done = 0
        for group in clusters(pieces):
            shared = shared_out(group)
            if (rule := blocks(shared)) is not None:
                out.append(self._pending[done : seen.original(group[0].start - start)])
                culprit = next(piece for piece in shared if piece.rule is rule)
                begin, end = seen.span(culprit.start - start, culprit.end - start)
                self._block(rule, culprit.recogniser.kind, self._offset + begin, self._offset + end)
                return "".join(out)
            for piece in shared:
                begin, end = seen.span(piece.start - start, piece.end - start)
                out += [self._pending[done:begin], self._instead(piece, text, begin, end)]
                done = end
        cut = seen.original(certain - start)
        out.append(self._pending[done:cut])
        self._pending = self._pending[cut:]
        self._offset += cut
        self._context = text[max(0, certain - CONTEXT_CHARS) : certain]
        return "".join(out)

    def _instead(self, piece: Piece, text: str, begin: int, end: int) -> str:
        """Return what stands for a piece, and note it."""
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
            # What came back from the model is the caller's to see as a placeholder only.
            is_restorable = rule.restore and self._guard.stage is Stage.INPUT
            return self._vault.name(kind, piece.recogniser.same(read), value, restorable=is_restorable)
        return value
