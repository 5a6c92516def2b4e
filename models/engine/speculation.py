"""How much is drafted, and for whom: only while it pays. It knows requests and what became of their drafts, no blocks.

A pass over a few tokens costs little more than a pass over one, for both read all weights; beyond ``spare_tokens`` each
token costs what a decode row does, and a guess that may fail is never worth that. Within that each request is drafted
for as its own luck says: twice as much after drafts that all held, as much as held after some did, half as much after
none did, and from the second such time on not for a while, which is twice as long each time. Even a request that never
has any luck then pays for one needless pass over a few tokens in ``_LONGEST_PAUSE``.
"""

from dataclasses import dataclass, field

from models.engine.live import LiveRequest
from models.engine.lookup import Lookup

_FIRST_DRAFTS = 4
_MOST_DRAFTS = 16
_FEWEST_DRAFTS = 2
_LONGEST_PAUSE = 16  # tokens


@dataclass(slots=True)
class Pace:
    """How many tokens the next draft of one request may have, and how long there is none after drafts that failed."""

    size: int = _FIRST_DRAFTS
    num_failed: int = 0  # drafts without an accepted token, in a row
    resumes_at: int = 0  # with so many output tokens

    def most(self, num_output: int) -> int:
        """Return how many drafts are worth while with ``num_output`` tokens generated."""
        return self.size if num_output >= self.resumes_at else 0

    def record(self, num_drafts: int, num_accepted: int, num_output: int) -> None:
        """Learn from drafts, which were made with ``num_output`` tokens generated."""
        if num_accepted == num_drafts:
            self.size = min(2 * self.size, _MOST_DRAFTS)
        elif num_accepted:
            self.size = max(_FEWEST_DRAFTS, num_accepted + 1)
        else:
            self.size = max(_FEWEST_DRAFTS, self.size // 2)
            self.resumes_at = num_output + min(1 << self.num_failed, _LONGEST_PAUSE)
        self.num_failed = 0 if num_accepted else self.num_failed + 1


@dataclass(slots=True)
class _Guessed:
    lookup: Lookup = field(default_factory=Lookup)
    pace: Pace = field(default_factory=Pace)


class Speculation:
    """Drafts for the requests of one engine. A pass may have ``spare_tokens`` tokens; 0 means never."""

    def __init__(self, spare_tokens: int) -> None:
        self.spare_tokens = spare_tokens
        self.num_drafted = 0
        self.num_accepted = 0
        self._guessed: dict[str, _Guessed] = {}

    def draft(self, live: LiveRequest, most: int) -> list[int]:
        """Return up to ``most`` guesses at the next tokens of a decoding request, never its last one."""
        most = min(most, live.max_tokens - live.num_tokens - 1)
        if most < 1:
            return []
        guessed = self._guessed.setdefault(live.id, _Guessed())
        most = min(most, guessed.pace.most(len(live.output)))
        if most < 1:
            return []
        lookup, num_prompt = guessed.lookup, len(live.request.prompt)
        lookup.extend(live.request.prompt[len(lookup) :])
        lookup.extend(live.output[len(lookup) - num_prompt :])
        return lookup.draft(most)

    def record(self, live: LiveRequest, num_drafts: int, num_accepted: int) -> None:
        """Learn what became of a request's drafts, before it gets the tokens."""
        self.num_drafted += num_drafts
        self.num_accepted += num_accepted
        self._guessed[live.id].pace.record(num_drafts, num_accepted, len(live.output))

    def forget(self, request_id: str) -> None:
        """Drop what is kept for a request."""
        self._guessed.pop(request_id, None)
