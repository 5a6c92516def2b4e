"""What a version on an inference server makes of the texts of a quality report.

The server shows the most likely tokens of a prompt if it can (vLLM's ``prompt_logprobs``). Else only the greedy
continuations are compared.
"""

import time
from collections.abc import Sequence
from typing import Final

from headrace.models.engine.requests import (
    MAX_TOP_LOGPROBS,
    CompletionOutput,
    EngineRequest,
    SampledLogprobs,
    SamplingParams,
)
from headrace.models.external.external_engine import ExternalEngine
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.errors import CannotLoadHere
from headrace.workers.tasks.quality_reading import NUM_ALONE, NUM_ANSWERS, Reading, answers_of, beginnings, continuation

LONGEST_S: Final = 300.0
"""A server that has not answered a request by then is given up."""

NO_ECHO: Final = "perplexity, KL divergence and top-1 agreement: the server shows no log-probabilities of a prompt"


def read_on_server(
    engine: ExternalEngine, tokenizer: Tokenizer, texts: Sequence[str], reference: Reading, *, dtype: str
) -> Reading:
    """Return what a server makes of the texts that the reference has read. ``engine`` is new, and stopped at the end.

    Raises EngineError, and CannotLoadHere if the server does not answer.
    """
    from headrace.models.quality.scores import compare_shown  # noqa: PLC0415 - a worker of a server has no torch

    tokens = [tokenizer.encode(text, add_special=True) for text in texts]
    tokens = [text for text in tokens if len(text) > 1]
    # As much of each text as the reference has read.
    read = [text[: len(of.following) + 1] for text, of in zip(tokens, reference.scores, strict=False)]
    engine.start()
    try:
        prompts = beginnings([*read, *tokens[len(read) :]])
        started_at = time.monotonic()
        outputs = _run(engine, [continuation(number, prompt) for number, prompt in enumerate(prompts)])
        took_s = time.monotonic() - started_at
        alone = [_first_token_s(_run(engine, [continuation(0, prompt)])[0]) for prompt in prompts[:NUM_ALONE]]
        answers = answers_of(outputs, took_s, alone)
        if not engine.capabilities.echo:
            return Reading(dtype, (), None, answers, NO_ECHO)
        return Reading(dtype, (), compare_shown(reference.scores, _scores(engine, read)), answers)
    finally:
        engine.stop(1.0)


def _scores(engine: ExternalEngine, texts: Sequence[Sequence[int]]) -> list[tuple[SampledLogprobs, ...]]:
    """Return the log-probabilities of each token of the texts after the first."""
    sampling = SamplingParams(1, logprobs=MAX_TOP_LOGPROBS, echo=True, ignore_eos=True)
    asked = [EngineRequest(f"quality-{number}", tuple(text), sampling) for number, text in enumerate(texts)]
    some = (asked[at : at + NUM_ANSWERS] for at in range(0, len(asked), NUM_ANSWERS))
    return [output.prompt_logprobs for each in some for output in _run(engine, each)]


def _first_token_s(output: CompletionOutput) -> float:
    return 0.0 if output.first_token_s is None else output.first_token_s


def _run(engine: ExternalEngine, requests: Sequence[EngineRequest]) -> list[CompletionOutput]:
    futures = [engine.submit(request) for request in requests]
    try:
        return [future.result(LONGEST_S) for future in futures]
    except TimeoutError:
        raise CannotLoadHere(f"the inference server gave no answer within {LONGEST_S:.0f} s") from None
