"""The self-test of a model version: a few short answers from the model itself, compared with golden ones if given.

It runs on an engine of its own, before the worker's engine exists. Only answers of Headrace's own engine are compared:
an inference server describes itself instead.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from headrace.models.engine.protocol import AnyEngine
from headrace.models.engine.requests import MAX_TOP_LOGPROBS, CompletionOutput, EngineRequest, SamplingParams
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.errors import CannotLoadHere
from headrace.store.registry.verification_report import GoldenAnswer

PROMPTS: Final = ("The capital of France is", "def add(a, b):\n    return", "1, 2, 3, 4,")
NUM_TOKENS: Final = 12
"""Without golden answers each prompt is continued by so many tokens. They are few, so that a start takes no longer."""

NEAR_TIE: Final[Mapping[str, float]] = {"float32": 1e-3}
"""By number format: a golden token may be so much less likely (natural logarithm) than the chosen one. Two programs
round differently, so the order of tokens that are almost equally likely proves nothing."""
_NEAR_TIE = 0.3

_LONGEST_S = 300.0


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The result. ``dtype``: the number format. ``fault``: why the version must be rejected, one sentence, or None."""

    answers: tuple[GoldenAnswer, ...] = ()
    dtype: str | None = None
    tokens_per_s: float | None = None
    context_tokens: int | None = None
    fault: str | None = None


def run_all(engine: AnyEngine, requests: Sequence[Any]) -> tuple[list[Any], float]:
    """Run requests together on a new engine; return their results and the seconds it took. Raises EngineError."""
    engine.start()
    started_at = time.monotonic()
    try:
        futures: list[Future[Any]] = [engine.submit(request) for request in requests]
        results = [future.result(_LONGEST_S) for future in futures]
    except TimeoutError:
        raise CannotLoadHere(f"the model gave no answer to the self-test within {_LONGEST_S:.0f} s") from None
    finally:
        engine.stop(1.0)
    return results, time.monotonic() - started_at


def generate_test(
    engine: AnyEngine, tokenizer: Tokenizer, golden: Sequence[GoldenAnswer], *, context_window: int, dtype: str
) -> SelfTest:
    """Let the model answer, and compare with the golden answers if there are any. Raises EngineError."""
    window = min(context_window, engine.capacity_tokens or context_window)
    asked = [(answer.prompt, len(answer.tokens)) for answer in golden] or [(prompt, NUM_TOKENS) for prompt in PROMPTS]
    requests = [
        _request(
            number, tokenizer.encode(prompt, add_special=True) or [0], num_tokens, window, is_compared=bool(golden)
        )
        for number, (prompt, num_tokens) in enumerate(asked)
    ]
    outputs: list[CompletionOutput]
    outputs, took_s = run_all(engine, requests)
    answers = tuple(
        GoldenAnswer(prompt=prompt, tokens=output.token_ids) for (prompt, _), output in zip(asked, outputs, strict=True)
    )
    num_tokens = sum(len(output.token_ids) for output in outputs)
    faults = (difference(tokenizer, *pair, dtype=dtype) for pair in zip(golden, outputs, strict=False))
    return SelfTest(answers, dtype, num_tokens / took_s, window, next(filter(None, faults), None))


def difference(tokenizer: Tokenizer, golden: GoldenAnswer, output: CompletionOutput, *, dtype: str) -> str | None:
    """Return how an answer differs from the golden one, one sentence; None if only a near tie separates them."""
    for number, wanted in enumerate(golden.tokens):
        if number >= len(output.token_ids):
            return f"the answer to {golden.prompt[:40]!r} ends after {number} tokens, the golden one has more"
        found, chances = output.token_ids[number], output.logprobs[number]
        if found == wanted:
            continue
        known = dict(zip(chances.top_ids, chances.top_logprobs, strict=True))
        if wanted in known and chances.logprob - known[wanted] <= NEAR_TIE.get(dtype, _NEAR_TIE):
            return None  # from here on the texts are different ones
        return (
            f"token {number + 1} of the answer to {golden.prompt[:40]!r} is {found} ({tokenizer.decode([found])!r}), "
            f"and the golden one is {wanted}"
        )
    return None


def _request(number: int, prompt: Sequence[int], num_tokens: int, window: int, *, is_compared: bool) -> EngineRequest:
    num_tokens = max(1, min(num_tokens, window - 1))
    sampling = SamplingParams(num_tokens, logprobs=MAX_TOP_LOGPROBS if is_compared else None)
    return EngineRequest(f"self-test-{number}", tuple(prompt[: window - num_tokens]), sampling)
