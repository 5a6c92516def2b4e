"""Converts logprobs between the engine's form and the stored form."""

from collections.abc import Iterable, Sequence
from itertools import chain

from models.engine.requests import SampledLogprobs
from store.streams import checkpoints as stored
from store.streams.checkpoints import Logprobs

_DECIMALS = 6
"""More decimals are noise for a model in half precision, and every digit is sent and stored."""

# JSON has no infinity. OpenAI's API gives this value for a token that was not among the likely ones.
_LEAST = -9999.0


def kept(token_ids: Iterable[int], logprobs: Iterable[SampledLogprobs]) -> Logprobs:
    """Return the logprobs of consecutive tokens in the stored form."""
    return tuple(
        stored.LogprobRow(token_id, _number(one.logprob), _top(one))
        for token_id, one in zip(token_ids, logprobs, strict=True)
    )


def kept_by_delta(token_ids: Iterable[Sequence[int]], logprobs: Sequence[SampledLogprobs]) -> tuple[Logprobs, ...]:
    """Return the stored form for each delta's tokens; empty without logprobs. There are at least as many as tokens."""
    if not logprobs:
        return ()
    rest = iter(logprobs)
    return tuple(kept(ids, [next(rest) for _ in ids]) for ids in token_ids)


def emitted(groups: Iterable[Logprobs]) -> tuple[SampledLogprobs, ...]:
    """Return stored logprobs in the engine's form."""
    return tuple(
        SampledLogprobs(one.logprob, tuple(top_id for top_id, _ in one.top), tuple(value for _, value in one.top))
        for one in chain.from_iterable(groups)
    )


def _top(one: SampledLogprobs) -> tuple[tuple[int, float], ...]:
    return tuple(zip(one.top_ids, map(_number, one.top_logprobs), strict=True))


def _number(logprob: float) -> float:
    return round(max(logprob, _LEAST), _DECIMALS)
