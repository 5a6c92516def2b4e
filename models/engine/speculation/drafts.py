"""How much is drafted, and for whom: only while it pays. It knows requests, what became of their drafts, and what a
token more in a pass costs, but no blocks.

A pass gives its requests a token each, and one more for every draft that holds. So a draft is worth its place if the
chance that it holds is greater than the share of the pass's time that it takes, times the tokens that the pass gives
anyway: then more tokens come a second. What it takes is learnt from the passes (``StepCosts``), the chance from what
became of the request's own drafts before; each further draft holds only if those before it do.

A request whose drafts are not worth that is tried with a single one now and then, for it may begin to copy: the more
often one fails, the longer the pause after it. Where even drafts that all hold would gain little, it is not tried.
"""

from dataclasses import dataclass, field

from models.engine.sequences.sequence import LiveRequest
from models.engine.speculation.prompt_lookup import Lookup
from models.engine.speculation.step_costs import StepCosts

_MOST_DRAFTS = 16
_SHORTEST_PAUSE, _LONGEST_PAUSE = 4, 64  # tokens between drafts that are mere trials
_LEAST_GAIN = 1.25  # times the tokens a second, if all held, for which a trial is worth while
_REMEMBERED = 0.8  # of what is known of a request's drafts, after each pass that had some
_UNKNOWN_COST = 1 / 16  # of a pass over one token, for each token more, while nothing is learnt


@dataclass(slots=True)
class Luck:
    """What became of one request's drafts."""

    held: float = 0.0
    failed: float = 0.0
    num_failed: int = 0  # drafts of which none held, less those of which one did
    resumes_at: int = 0  # with so many output tokens one is tried again

    @property
    def chance(self) -> float:
        """How likely a next draft is to hold, if those before it did; a half while nothing is known."""
        return (self.held + 1) / (self.held + self.failed + 2)

    def record(self, num_drafts: int, num_accepted: int, num_output: int) -> None:
        """Learn from drafts, which were made with ``num_output`` tokens generated.

        Behind the first that failed nothing is known of the others.
        """
        self.held = _REMEMBERED * self.held + num_accepted
        self.failed = _REMEMBERED * self.failed + (num_accepted < num_drafts)
        self.resumes_at = num_output + min(_SHORTEST_PAUSE << self.num_failed, _LONGEST_PAUSE)
        self.num_failed = max(0, self.num_failed - 1) if num_accepted else min(self.num_failed + 1, 8)


@dataclass(slots=True)
class _Worth:
    """What the pass that is being planned takes and gives so far."""

    base: float
    each: float
    tokens: float
    expected: float  # tokens that it gives

    def add(self, chance: float) -> bool:
        """Take a draft in that holds with ``chance``, if that makes more tokens a second."""
        if chance * (self.base + self.each * self.tokens) <= self.each * self.expected:
            return False
        self.tokens += 1
        self.expected += chance
        return True

    def best_gain(self, most: int) -> float:
        """Return how many times the tokens a second ``most`` drafts would make if all held."""
        return (1 + most / self.expected) / (1 + most * self.each / (self.base + self.each * self.tokens))


@dataclass(slots=True)
class _Guessed:
    lookup: Lookup = field(default_factory=Lookup)
    luck: Luck = field(default_factory=Luck)


class Speculation:
    """Drafts for the requests of one engine. A pass may have ``spare_tokens`` tokens; 0 means never."""

    def __init__(self, spare_tokens: int) -> None:
        self.spare_tokens = spare_tokens
        self.num_drafted = 0
        self.num_accepted = 0
        self.costs = StepCosts(spare_tokens)
        self._guessed: dict[str, _Guessed] = {}
        self._worth = _Worth(1.0, 0.0, 0.0, 0.0)

    def begin(self, num_rows: int) -> None:
        """Begin a pass in which so many requests decode."""
        base, each = self.costs.line() or (1.0, _UNKNOWN_COST)
        self._worth = _Worth(base, each, num_rows, num_rows)

    def draft(self, live: LiveRequest, most: int) -> list[int]:
        """Return up to ``most`` guesses at the next tokens of a decoding request, never its last one."""
        most = min(most, _MOST_DRAFTS, live.max_tokens - live.num_tokens - 1)
        if most < 1:
            return []
        guessed = self._guessed.setdefault(live.id, _Guessed())
        lookup, num_prompt = guessed.lookup, len(live.request.prompt)
        lookup.extend(live.request.prompt[len(lookup) :])
        lookup.extend(live.output[len(lookup) - num_prompt :])
        drafts = lookup.draft(most)
        count = self._num_worth_having(guessed.luck, len(drafts))
        if not count and len(live.output) >= guessed.luck.resumes_at and self._worth.best_gain(most) >= _LEAST_GAIN:
            count = 1
        return drafts[:count]

    def record(self, live: LiveRequest, num_drafts: int, num_accepted: int) -> None:
        """Learn what became of a request's drafts, before it gets the tokens."""
        self.num_drafted += num_drafts
        self.num_accepted += num_accepted
        self._guessed[live.id].luck.record(num_drafts, num_accepted, len(live.output))

    def forget(self, request_id: str) -> None:
        """Drop what is kept for a request."""
        self._guessed.pop(request_id, None)

    def _num_worth_having(self, luck: Luck, most: int) -> int:
        count, chance = 0, luck.chance
        while count < most and self._worth.add(chance):
            count += 1
            chance *= luck.chance
        return count
