"""The model of the fake inference servers: bytes, one next token for each text, and the state that real servers keep.

What a real server counts from the generated tokens alone (a seed's draws, presence and frequency penalties, a grammar)
is counted so here, so that an attempt that went on where it must not would show another text.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from headrace.prompts.grammar import Grammars, Matcher

EOS = 256
VOCAB = EOS + 1
_LETTERS = b"etaoinshrdlucmfwypvbgk      "
_ENDS_ONE_IN = 40

_grammars = Grammars(None, vocab_size=VOCAB, eos_token_ids=frozenset({EOS}))


@dataclass
class Call:
    """One request as the server has read it. ``body`` is what was sent."""

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int | None = None
    is_seed_positional: bool = False
    """True if the seed and the token's place alone decide a draw."""
    output_penalties: float = 0.0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = (EOS,)
    min_tokens: int = 0
    grammar: tuple[str, str] | None = None
    priority: int = 0
    body: dict[str, object] = field(default_factory=dict)
    output: list[int] = field(default_factory=list)
    finish: str | None = None

    def check(self) -> None:
        """Raise InvalidRequest for a grammar that cannot be followed."""
        if self.grammar is not None:
            _grammars.check(*self.grammar)

    def advance(self) -> int:
        """Generate one token, and note why the request ends with it if it does."""
        token = self._next()
        self.output.append(token)
        if token in self.stop_token_ids:
            self.finish = "stop"
        elif len(self.output) >= self.max_tokens:
            self.finish = "length"
        return token

    def logprobs(self, token: int, count: int) -> list[tuple[int, float]]:
        """Return ``count`` likely tokens of a position with their logprobs, the chosen one first."""
        others = [other for other in range(ord("a"), ord("z")) if other != token][: max(0, count - 1)]
        return [(token, -0.25), *((other, -1.0 - rank) for rank, other in enumerate(others))]

    def _next(self) -> int:
        kept = (
            self.seed if self.temperature and self.seed is not None else None,
            random.random() if self.temperature and self.seed is None else None,
            len(self.output) if self.temperature and self.seed is not None and not self.is_seed_positional else None,
            sorted(set(self.output)) if self.output_penalties else None,
        )
        draw = number((*self.prompt, *self.output), kept)
        if self.grammar is not None:
            return self._allowed(draw)
        if draw % _ENDS_ONE_IN == 0 and not self.ignore_eos and len(self.output) >= self.min_tokens:
            return EOS
        return _LETTERS[draw // _ENDS_ONE_IN % len(_LETTERS)]

    def _allowed(self, draw: int) -> int:
        matcher: Matcher = _grammars.matcher(*self.grammar)
        matcher.follow(self.output)
        mask = int.from_bytes(matcher.masks()[0], "little")
        allowed = [token for token in range(VOCAB) if mask >> token & 1]
        return allowed[draw % len(allowed)]


def number(tokens: Sequence[int], *kept: object) -> int:
    """Return a number that depends on all of it."""
    return int.from_bytes(blake2b(repr((tuple(tokens), kept)).encode(), digest_size=6).digest(), "big")


def answer(prompt: Sequence[int], max_tokens: int, *, ignore_eos: bool = False) -> tuple[int, ...]:
    """Return the model's greedy answer."""
    call = Call("direct", tuple(prompt), max_tokens, ignore_eos=ignore_eos)
    while call.finish is None:
        call.advance()
    return tuple(call.output)
