"""Measures the distance of a model version from its reference: perplexity, KL divergence and top-1 agreement on texts.

Both versions read the same tokens (teacher forcing), so that one early difference is not counted many times. The
reference is read first and its most likely tokens are kept, so that only one of both is in memory. Requires torch.
"""

import gc
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import torch

from headrace.models.runners.torch_runner import TorchRunner

P = ParamSpec("P")
T = TypeVar("T")

KEPT = 1024
"""The tokens of the reference that are kept at each position, the most likely ones. All others count as one."""


@dataclass(frozen=True, slots=True)
class Quality:
    """The distance of a version from its reference. All values are means over ``num_tokens`` predictions.

    ``kl`` is the Kullback-Leibler divergence from the next-token distribution of the reference, in nats, where all
    tokens that were not kept count as one: at most the divergence over all tokens. ``top1`` is the share of positions
    where both have the same most likely token.
    """

    perplexity: float
    kl: float
    top1: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class TextScores:
    """What a version makes of a text of n + 1 tokens: the log-probability of each next token, (n,), and the most likely
    tokens with their log-probabilities, (n, at most ``KEPT``), best first.
    """

    following: torch.Tensor
    top_ids: torch.Tensor
    top: torch.Tensor


@dataclass(slots=True)
class _Sums:
    """Totals over the predictions so far."""

    surprise: float = field(default=0.0)
    divergence: float = field(default=0.0)
    agreeing: int = field(default=0)
    num_tokens: int = field(default=0)

    def add(self, expected: TextScores, found: torch.Tensor, following: torch.Tensor) -> None:
        """Add the log-probabilities (n, vocab) of a version, and the next tokens (n,)."""
        count = len(following)
        kept = expected.top[:count].double()
        both = found.gather(1, expected.top_ids[:count].long()).double()
        self.surprise -= found.gather(1, following[:, None]).sum(dtype=torch.double).item()
        self.divergence += (kept.exp() * (kept - both)).sum().item()
        if kept.shape[1] < found.shape[1]:
            rest, other = (1 - each.exp().sum(1) for each in (kept, both))
            rest, other = rest.clamp_min(1e-12), other.clamp_min(1e-12)
            self.divergence += (rest * (rest / other).log()).sum().item()
        self.agreeing += int((expected.top_ids[:count, 0] == found.argmax(-1)).sum())
        self.num_tokens += count

    @property
    def means(self) -> Quality:
        count = self.num_tokens
        return Quality(math.exp(self.surprise / count), self.divergence / count, self.agreeing / count, count)


def score_texts(
    runner: TorchRunner, texts: Sequence[Sequence[int]], *, longest_s: float = math.inf
) -> list[TextScores]:
    """Return the scores of texts, of as many as are begun within ``longest_s``, but at least of one.

    Each text needs two tokens or more. Only for a runner without requests. Raises ValueError if a text has fewer
    tokens, or is too long for the runner.
    """
    _check(texts)
    return _on_a_thread(_score_texts, runner, texts, longest_s)


def compare(reference: Sequence[TextScores], runner: TorchRunner, texts: Sequence[Sequence[int]]) -> Quality:
    """Return the distance of a version from the scores of its reference, on the texts that the reference has scored.

    Both need the same vocabulary. Raises ValueError as ``score_texts``.
    """
    _check(texts)
    return _on_a_thread(_compare, reference, runner, texts)


def of_itself(scores: Sequence[TextScores]) -> Quality:
    """Return the quality of a version that is its own reference."""
    following = torch.cat([each.following for each in scores]).double()
    return Quality(math.exp(-following.mean().item()), 0.0, 1.0, len(following))


def free_memory() -> None:
    """Give back the memory of models that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@torch.inference_mode()
def _score_texts(runner: TorchRunner, texts: Sequence[Sequence[int]], longest_s: float) -> list[TextScores]:
    ends_at = time.monotonic() + longest_s
    found: list[TextScores] = []
    for text in texts:
        if found and time.monotonic() >= ends_at:
            break
        scores = _predictions(runner, text)
        following = torch.tensor(text[1:], device=scores.device)
        top = scores.topk(min(KEPT, scores.shape[1]), dim=-1)
        found.append(TextScores(scores.gather(1, following[:, None])[:, 0], top.indices.int(), top.values))
    return found


@torch.inference_mode()
def _compare(reference: Sequence[TextScores], runner: TorchRunner, texts: Sequence[Sequence[int]]) -> Quality:
    sums = _Sums()
    for expected, text in zip(reference, texts, strict=False):
        found = _predictions(runner, text)
        sums.add(expected, found, torch.tensor(text[1:], device=found.device))
    return sums.means


def _check(texts: Sequence[Sequence[int]]) -> None:
    if not texts or min(map(len, texts)) < 2:
        raise ValueError("every text needs two tokens or more, or there is nothing to predict")


def _on_a_thread(compute: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Compute on a thread that ends, because a thread that has computed keeps its OpenMP threads (``torch_load``)."""
    with ThreadPoolExecutor(1, thread_name_prefix="quality") as pool:
        return pool.submit(compute, *arguments, **options).result()


def _predictions(runner: TorchRunner, text: Sequence[int]) -> torch.Tensor:
    """Return the log-probabilities after each token except the last, (n - 1, vocab)."""
    return runner.score(text)[:-1].log_softmax(dim=-1)
