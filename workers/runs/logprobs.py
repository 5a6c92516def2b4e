"""Converts logprobs between the engine's form and the stored form."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from headrace.models.engine.requests import CompletionOutput, EngineRequest, SampledLogprobs
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.streams import checkpoints as stored
from headrace.store.streams.checkpoints import Logprobs
from headrace.store.tasks.generate import PromptEcho, PromptToken, TopLogprob

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


def echoed(tokenizer: Tokenizer, request: EngineRequest, completion: CompletionOutput) -> PromptEcho | None:
    """Return the prompt of a request that asks for an echo, with the logprobs of its tokens if it asks for them."""
    sampling = request.sampling
    if not sampling.echo:
        return None
    text = tokenizer.decode(request.prompt)
    is_scored = len(completion.prompt_logprobs) == len(request.prompt) - 1  # not if it was cancelled before
    if not (sampling.scores_prompt and is_scored):
        return PromptEcho(text=text)
    first = PromptToken(**_spelled(tokenizer, request.prompt[0]))
    rows = kept(request.prompt[1:], completion.prompt_logprobs)
    return PromptEcho(text=text, tokens=(first, *(_prompt_token(tokenizer, row) for row in rows)))


def _prompt_token(tokenizer: Tokenizer, row: stored.LogprobRow) -> PromptToken:
    top = tuple(TopLogprob(**_spelled(tokenizer, token_id), logprob=value) for token_id, value in row.top)
    return PromptToken(**_spelled(tokenizer, row.token_id), logprob=row.logprob, top_logprobs=top)


def _spelled(tokenizer: Tokenizer, token_id: int) -> dict[str, Any]:
    own = tokenizer.spelling(token_id)
    return {"token": own.decode(errors="replace"), "bytes": tuple(own)}


def _top(one: SampledLogprobs) -> tuple[tuple[int, float], ...]:
    return tuple(zip(one.top_ids, map(_number, one.top_logprobs), strict=True))


def _number(logprob: float) -> float:
    return round(max(logprob, _LEAST), _DECIMALS)
