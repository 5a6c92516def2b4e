"""The seam between deciding and computing: one plan per step in, one token per sampled row out.

A runner owns the weights, the KV tensors and nothing of the schedule. It may keep per-request sampling state (random
generator, token counts for penalties) between ``run`` calls and must drop it when told ``forget``.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from models.engine.requests import EncodeRow, EngineRequest, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Row:
    """One request's part of a step: ``tokens`` enter the cache at positions ``start``, ``start + 1``, …

    ``blocks`` is the request's whole block table: position p lives in block ``blocks[p // block_tokens]`` at offset
    ``p % block_tokens``, and it covers ``start + len(tokens)``. Blocks that end at or before ``start`` may be in other
    requests' tables too, and are only read. A decode row has one token; a prefill chunk has one
    or more. ``sample`` is True when the last of ``tokens`` is the newest of the request, so that its logits choose
    the next one. ``output`` are the tokens generated so far (for penalties and for the seeded draw, whose n-th number
    depends on seed and n alone).

    A decode row may have ``drafts`` after its one token: the last of ``tokens`` are then mere guesses of what comes
    next. What it writes at the positions of guesses that fail is written again later.
    """

    request: EngineRequest
    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    output: Sequence[int]
    sample: bool
    drafts: Sequence[int] = ()

    @property
    def is_decode(self) -> bool:
        """True if only the newest generated token enters."""
        return bool(self.output) and self.start == len(self.request.prompt) + len(self.output) - 1


class Interrupt:
    """A flag that any thread may set for somebody who must not wait for the step under way, and a pass may look at."""

    def __init__(self) -> None:
        self._flag = array("i", [0])

    def set(self) -> None:
        """Ask for the end."""
        self._flag[0] = 1

    @property
    def is_set(self) -> bool:
        """True once the end was asked for."""
        return bool(self._flag[0])

    @property
    def address(self) -> int:
        """Where the flag lies, a C int, for code that is compiled."""
        return self._flag.buffer_info()[0]


class Interrupted(Exception):
    """Raised by ``run`` instead of a result when the plan's flag was set: nobody got a token."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What runs together now: decode rows first, then prefill chunks. ``interrupt`` may end it early."""

    rows: tuple[Row, ...]
    interrupt: Interrupt | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that enter the model in this step."""
        return sum(len(row.tokens) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The next token of one request, after those of its row's drafts that were ``accepted``.

    It is None with ``finite`` False when the numbers were NaN or infinite, and None with ``finite`` True when no token
    can follow within the request's grammar. ``logprobs`` are one for each of ``tokens`` if the request asks.
    """

    request_id: str
    token: int | None
    finite: bool = True
    accepted: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens that the request got, in order."""
        return self.accepted if self.token is None else (*self.accepted, self.token)


class Runner(Protocol):
    """Computes one step. Only the engine's thread calls it, one call at a time."""

    context_window: int
    eos_token_ids: frozenset[int]
    num_blocks: int
    block_tokens: int
    spare_tokens: int  # so many enter together at hardly more than the cost of one; 0 if none do

    def run(self, plan: StepPlan) -> list[Sampled]:
        """Write the rows' keys and values, and return one Sampled for each row with ``sample``, in plan order.

        A row whose numbers are not finite has one in any case; what it wrote is found by nobody, and must be wiped if
        it could be noticed by whoever gets the blocks next. Whatever it raises, it has written to the cache at the
        positions of the plan's own tokens and nowhere else: any part of the plan may run again. It may raise
        Interrupted once the plan's flag is set, and need not look at it.
        """
        ...

    def check(self, request: EngineRequest) -> None:
        """Raise RequestInvalid for a request that this runner cannot compute. Any thread may ask, at any time."""
        ...

    def forget(self, request_id: str) -> None:
        """Drop whatever is kept for a request that has ended; it may have ended before it ever ran."""
        ...


class Encoder(Protocol):
    """Turns whole sequences into vectors. Only the engine's thread calls ``run``, one call at a time."""

    context_window: int

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return each row's vector as little-endian float32, None where its numbers are not finite.

        Rows come in any order, the longest first; what stands beside a row does not change its vector but by the
        rounding of another order of sums.
        """
        ...


class RunnerBroken(Exception):
    """Raised by ``run`` when no later step can succeed either, as after a lost device: the engine ends."""
