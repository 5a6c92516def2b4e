"""Measures the distance of a model version from its reference: perplexity, KL divergence and top-1 agreement on texts.

Both versions read the same tokens (teacher forcing), so that one early difference is not counted many times. The limits
are in ``models.loading.precision_gate``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from models.runners.torch_runner import TorchRunner


@dataclass(frozen=True, slots=True)
class Quality:
    """The distance of a version from its reference. All values are means over ``num_tokens`` predictions.

    ``kl`` is the Kullback-Leibler divergence from the next-token distribution of the reference, in nats. ``top1`` is
    the share of positions where both have the same most likely token.
    """

    perplexity: float
    kl: float
    top1: float
    num_tokens: int


@dataclass(slots=True)
class _Sums:
    """Totals over the predictions so far."""

    surprise: float = field(default=0.0)
    divergence: float = field(default=0.0)
    agreeing: int = field(default=0)
    num_tokens: int = field(default=0)

    def add(self, expected: torch.Tensor, found: torch.Tensor, following: torch.Tensor) -> None:
        """Add predictions: the log-probabilities (n, vocab) of both versions, and the next tokens (n,)."""
        self.surprise -= found.gather(1, following[:, None]).sum(dtype=torch.double).item()
        self.divergence += (expected.exp() * (expected - found)).sum(dtype=torch.double).item()
        self.agreeing += int((expected.argmax(-1) == found.argmax(-1)).sum())
        self.num_tokens += len(following)

    @property
    def means(self) -> Quality:
        count = self.num_tokens
        return Quality(math.exp(self.surprise / count), self.divergence / count, self.agreeing / count, count)


def measure_quality(reference: TorchRunner, candidate: TorchRunner, texts: Sequence[Sequence[int]]) -> Quality:
    """Compare two runners of the same vocabulary, without requests. Each text needs two tokens or more.

    Raises ValueError if a text has fewer tokens, or is too long for a runner.
    """
    return measure_all(reference, [candidate], texts)[0]


@torch.inference_mode()
def measure_all(
    reference: TorchRunner, candidates: Sequence[TorchRunner], texts: Sequence[Sequence[int]]
) -> list[Quality]:
    """Compare several candidates with one pass of the reference over each text. As ``measure_quality``."""
    if not texts or min(map(len, texts)) < 2:
        raise ValueError("every text needs two tokens or more, or there is nothing to predict")
    sums = [_Sums() for _ in candidates]
    for text in texts:
        expected = _predictions(reference, text)
        following = torch.tensor(text[1:], device=expected.device)
        for candidate, total in zip(candidates, sums, strict=True):
            found = expected if candidate is reference else _predictions(candidate, text)
            total.add(expected, found, following)
    return [total.means for total in sums]


def _predictions(runner: TorchRunner, text: Sequence[int]) -> torch.Tensor:
    """Return the log-probabilities after each token except the last, (n - 1, vocab)."""
    return runner.score(text)[:-1].log_softmax(dim=-1)
