"""What one version makes of the texts of a quality report: probabilities, greedy continuations, speed.

The probabilities come from the runner, the continuations from the engine that will serve, as in a self-test.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from headrace.models.engine.protocol import AnyEngine
from headrace.models.engine.requests import CompletionOutput, EngineRequest, SamplingParams
from headrace.models.engine.runner import Runner
from headrace.prompts.tokenizer import Tokenizer
from headrace.workers.tasks.self_test import run_all

if TYPE_CHECKING:
    from headrace.models.quality.scores import Quality, TextScores

TEXT_TOKENS = 512
"""Of a longer text the beginning is read: the probabilities of all tokens of a text are in memory together."""

LONGEST_S = 60.0
"""The reference begins no text after so many seconds, and the version reads as many texts as the reference."""

NUM_ANSWERS = 12
"""Of so many texts the beginning is continued."""

_PROMPT_TOKENS = 48
_ANSWER_TOKENS = 32
NUM_ALONE = 3
"""Of so many continuations the first token is timed, each alone."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Greedy continuations, and the speed with which they were computed."""

    tokens: tuple[tuple[int, ...], ...]
    tokens_per_s: float
    first_token_s: float


@dataclass(frozen=True, slots=True)
class Reading:
    """The texts as one version read them.

    ``scores``: of a reference, for the version that is compared with it. ``quality``: the distance from the reference,
    or from itself; None if the version shows no probabilities, and ``missing`` says why.
    """

    dtype: str
    scores: "tuple[TextScores, ...]"
    quality: "Quality | None"
    answers: Answers
    missing: str | None = None


def read_texts(
    runner: Runner,
    new_engine: Callable[[], AnyEngine],
    tokenizer: Tokenizer,
    texts: Sequence[str],
    reference: Reading | None,
    *,
    dtype: str,
) -> Reading | None:
    """Return what a version makes of texts; None if its runner shows no probabilities. Imports torch.

    ``reference``: the reading of the version to compare with. Raises EngineError.
    """
    from headrace.models.quality.scores import compare, of_itself, score_texts  # noqa: PLC0415 - a worker of the fake has no torch
    from headrace.models.runners.torch_runner import TorchRunner  # noqa: PLC0415 - imports torch, which a worker of the fake has not

    if not isinstance(runner, TorchRunner):
        return None
    longest = min(TEXT_TOKENS, runner.context_window, runner.num_blocks * runner.block_tokens)
    tokens = [tokenizer.encode(text, add_special=True)[:longest] for text in texts]
    tokens = [text for text in tokens if len(text) > 1]
    if reference is None:
        scores = tuple(score_texts(runner, tokens, longest_s=LONGEST_S))
        quality = of_itself(scores)
    else:
        scores, quality = (), compare(reference.scores, runner, tokens)
    return Reading(dtype, scores, quality, _continue(new_engine, tokens))


def _continue(new_engine: Callable[[], AnyEngine], texts: Sequence[Sequence[int]]) -> Answers:
    """Continue the beginning of each of the first texts, all together, then some alone."""
    prompts = beginnings(texts)
    outputs: list[CompletionOutput]
    outputs, took_s = run_all(new_engine(), [continuation(number, prompt) for number, prompt in enumerate(prompts)])
    alone = [run_all(new_engine(), [continuation(0, prompt)])[0][0].first_token_s for prompt in prompts[:NUM_ALONE]]
    return answers_of(outputs, took_s, alone)


def beginnings(texts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Return the beginnings of the first texts, which are continued."""
    return [tuple(text[: min(_PROMPT_TOKENS, -(-len(text) // 2))]) for text in texts[:NUM_ANSWERS]]


def answers_of(outputs: Sequence[CompletionOutput], took_s: float, alone: Sequence[float]) -> Answers:
    """Return continuations with their speed. ``alone``: seconds to the first token of those that ran alone."""
    num_tokens = sum(len(output.token_ids) for output in outputs)
    return Answers(tuple(output.token_ids for output in outputs), num_tokens / took_s, median(alone))


def continuation(number: int, prompt: tuple[int, ...]) -> EngineRequest:
    """Return the request that continues a beginning greedily."""
    return EngineRequest(f"quality-{number}", prompt, SamplingParams(_ANSWER_TOKENS, ignore_eos=True))
