"""Speculative decoding by prompt lookup: drafts tokens while drafting increases the tokens per second.

A pass gives each request one token, and one more for each accepted draft. So a draft is worth its cost if its chance
of acceptance is greater than its share of the pass's time, times the tokens that the pass gives anyway. The share is
learned from the passes (``StepCosts``), the chance from the request's earlier drafts. A draft can be accepted only if
all drafts before it are.

When drafts are not worth their cost for a request, it gets a single draft now and then, because it may begin to copy.
The pause between trials grows with each failure. No trial is made where even accepted drafts would gain little.
Verification of drafts is part of sampling.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.models.engine.requests import RequestId
from headrace.models.engine.sequence import SequenceState

NUM_MATCHED = 2  # tokens that must match; a longer match is preferred
_MAX_MATCHED = 8
_MAX_POSITIONS = 4  # the latest positions of a pair that are compared

_KEPT = 8  # passes of each size; the fastest one counts, because the others were disturbed
_FORGOTTEN_AFTER = 512  # passes: contexts have grown since

_MOST_DRAFTS = 16
_SHORTEST_PAUSE, _LONGEST_PAUSE = 4, 64  # tokens between trials
_LEAST_GAIN = 1.25  # a trial is made if accepted drafts would make at least this many times the tokens per second
_DECAY = 0.8  # of the statistics, with each pass that has drafts
_UNKNOWN_COST = 1 / 16  # of each further token, in passes over one token, while nothing is learned


class PromptLookup:
    """Drafts the next tokens of one request from the text after an earlier match of the last ones.

        ... the river bends | at the mill ...        ... the river bends | ?
                              └──────────── drafts ─────────────────────▶ at the mill

    Saxena 2023 (prompt lookup decoding). An index of the positions after each pair of tokens, updated with each token,
    makes a draft cost the same whatever the length of the text.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], list[int]] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        for token in tokens:
            if len(self._tokens) >= NUM_MATCHED:
                # A token follows the last pair now, so this pair can be found.
                positions = self._after.setdefault(tuple(self._tokens[-NUM_MATCHED:]), [])
                positions.append(len(self._tokens))
                del positions[:-_MAX_POSITIONS]
            self._tokens.append(token)

    def draft(self, most: int) -> list[int]:
        """Return up to ``most`` tokens after the longest match of the text's end; of equal ones, after the latest."""
        positions = self._after.get(tuple(self._tokens[-NUM_MATCHED:]), ())
        if most < 1 or not positions:
            return []
        start = max(reversed(positions), key=self._num_matching)
        drafts: list[int] = []
        for position in range(start, start + most):
            # Past the end of the text the drafts themselves are copied: a repeating text continues to repeat.
            is_known = position < len(self._tokens)
            drafts.append(self._tokens[position] if is_known else drafts[position - len(self._tokens)])
        return drafts

    def _num_matching(self, position: int) -> int:
        """Return how many tokens before ``position`` are those at the end of the text."""
        tokens, end = self._tokens, len(self._tokens)
        count = NUM_MATCHED
        while count < min(_MAX_MATCHED, position) and tokens[position - count - 1] == tokens[end - count - 1]:
            count += 1
        return count


class StepCosts:
    """The cost of one more token in a decode pass, learned from passes over up to ``most_tokens`` tokens.

        seconds of a pass over n tokens  ≈  base + each · n

    Where reading the weights dominates, ``each`` is almost 0. Where arithmetic dominates, a pass over a few tokens may
    take as long as the same number of passes over one. Which one holds depends on the CPU, the model, its number format
    and the number of tokens, so it is measured.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._num_recorded = 0
        self._by_size: dict[int, deque[tuple[int, float]]] = {}

    def record(self, num_tokens: int, seconds: float) -> None:
        """Learn from a pass."""
        if num_tokens <= self._most_tokens:
            self._num_recorded += 1
            kept = self._by_size.setdefault(num_tokens, deque(maxlen=_KEPT))
            kept.append((self._num_recorded, seconds))

    def line(self) -> tuple[float, float] | None:
        """Return (base, each) in seconds, neither below 0, by linear regression.

        None while passes of fewer than two sizes are known, or if they take no time.
        """
        least = {size: self._least(kept) for size, kept in self._by_size.items()}
        known = {size: seconds for size, seconds in least.items() if seconds is not None}
        if len(known) < 2:
            return None
        mean_size, mean_s = sum(known) / len(known), sum(known.values()) / len(known)
        spread = sum((size - mean_size) ** 2 for size in known)
        each = sum((size - mean_size) * (seconds - mean_s) for size, seconds in known.items()) / spread
        each = min(max(each, 0.0), mean_s / mean_size)
        return (mean_s - each * mean_size, each) if mean_s else None

    def _least(self, kept: "deque[tuple[int, float]]") -> float | None:
        recent = [seconds for number, seconds in kept if self._num_recorded - number < _FORGOTTEN_AFTER]
        return min(recent, default=None)


@dataclass(slots=True)
class AcceptanceStatistics:
    """How many drafts of one request were accepted."""

    accepted: float = 0.0
    rejected: float = 0.0
    num_failed: int = 0  # passes without an accepted draft, minus passes with one
    resumes_at: int = 0  # number of output tokens at which the next trial is made

    @property
    def chance(self) -> float:
        """The probability that a draft is accepted if those before it are; 0.5 while nothing is known."""
        return (self.accepted + 1) / (self.accepted + self.rejected + 2)

    def record(self, num_drafts: int, num_accepted: int, num_output: int) -> None:
        """Learn from a pass with drafts, made when ``num_output`` tokens were generated.

        Drafts after the first rejected one give no information.
        """
        self.accepted = _DECAY * self.accepted + num_accepted
        self.rejected = _DECAY * self.rejected + (num_accepted < num_drafts)
        self.resumes_at = num_output + min(_SHORTEST_PAUSE << self.num_failed, _LONGEST_PAUSE)
        self.num_failed = max(0, self.num_failed - 1) if num_accepted else min(self.num_failed + 1, 8)


@dataclass(slots=True)
class PassEstimate:
    """The estimated cost and yield of the pass that is being planned."""

    base: float
    each: float
    tokens: float
    expected: float  # tokens that the pass gives

    def add(self, chance: float) -> bool:
        """Add a draft that is accepted with ``chance``, if that increases the tokens per second."""
        if chance * (self.base + self.each * self.tokens) <= self.each * self.expected:
            return False
        self.tokens += 1
        self.expected += chance
        return True

    def best_gain(self, most: int) -> float:
        """Return by which factor ``most`` drafts would increase the tokens per second if all were accepted."""
        return (1 + most / self.expected) / (1 + most * self.each / (self.base + self.each * self.tokens))


@dataclass(slots=True)
class _RequestDrafts:
    lookup: PromptLookup = field(default_factory=PromptLookup)
    acceptance: AcceptanceStatistics = field(default_factory=AcceptanceStatistics)


class Speculation:
    """Drafts for the requests of one engine. A pass may have ``spare_tokens`` tokens; 0 disables speculation."""

    def __init__(self, spare_tokens: int) -> None:
        self.spare_tokens = spare_tokens
        self.num_drafted = 0
        self.num_accepted = 0
        self.costs = StepCosts(spare_tokens)
        self.requests: dict[RequestId, _RequestDrafts] = {}
        self._estimate = PassEstimate(1.0, 0.0, 0.0, 0.0)

    def begin(self, num_rows: int) -> None:
        """Begin a pass with ``num_rows`` decoding requests."""
        base, each = self.costs.line() or (1.0, _UNKNOWN_COST)
        self._estimate = PassEstimate(base, each, num_rows, num_rows)

    def draft(self, seq: SequenceState, most: int) -> list[int]:
        """Return up to ``most`` draft tokens for a decoding request; its last token is never drafted.

        None where a token may be forced: the end of the reasoning cannot be seen in drafts.
        """
        if seq.request.is_bound_in_reasoning and not seq.is_answering:
            return []
        most = min(most, _MOST_DRAFTS, seq.max_tokens - seq.num_tokens - 1)
        if most < 1:
            return []
        known = self.requests.setdefault(seq.id, _RequestDrafts())
        lookup, acceptance, num_prompt = known.lookup, known.acceptance, len(seq.request.prompt)
        lookup.extend(seq.request.prompt[len(lookup) :])
        lookup.extend(seq.output[len(lookup) - num_prompt :])
        drafts = lookup.draft(most)
        count = self._num_worth_having(acceptance, len(drafts))
        if not count and len(seq.output) >= acceptance.resumes_at and self._estimate.best_gain(most) >= _LEAST_GAIN:
            count = 1
        return drafts[:count]

    def record(self, seq: SequenceState, num_drafts: int, num_accepted: int) -> None:
        """Learn how many of a request's drafts were accepted, before its tokens are appended."""
        self.num_drafted += num_drafts
        self.num_accepted += num_accepted
        self.requests[seq.id].acceptance.record(num_drafts, num_accepted, len(seq.output))

    def forget(self, request_id: RequestId) -> None:
        """Drop the state of a request."""
        self.requests.pop(request_id, None)

    def _num_worth_having(self, acceptance: AcceptanceStatistics, most: int) -> int:
        count, chance = 0, acceptance.chance
        while count < most and self._estimate.add(chance):
            count += 1
            chance *= acceptance.chance
        return count
