"""What the runner needs of a model, whatever computes it: a batch laid out, hidden states, and scores of them."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from models.engine.runner import Row, StepPlan
from models.families.geometry import Geometry


class Batch(Protocol):
    """One pass. ``rows`` are the plan's in the pass's order, and ``ends`` the index of each one's last token."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The plan's rows."""
        ...

    @property
    def ends(self) -> tuple[int, ...]:
        """The index of each row's last token."""
        ...


class BatchBuilder(Protocol):
    """Lays out plans for one model and cache."""

    def build(self, plan: StepPlan) -> Any:
        """Return the batch of a plan, in the form that the model reads."""
        ...

    def send(self, values: Sequence[int]) -> torch.Tensor:
        """Return host numbers as a tensor on the model's device, without waiting for it."""
        ...


class Cache(Protocol):
    """Keys and values of every layer, in blocks that the scheduler hands out."""

    num_blocks: int
    block_tokens: int

    def clear(self, blocks: torch.Tensor) -> None:
        """Wipe blocks in every layer."""
        ...


class CausalModel(Protocol):
    """The weights and the pass. A row's results depend on its request's tokens alone, not on its batch mates."""

    @property
    def config(self) -> Geometry:
        """The sizes that the cache and the batches are made for."""
        ...

    def forward(self, batch: Any, cache: Any) -> torch.Tensor:
        """Run a batch's tokens, storing their keys and values; return the hidden states, a row for each token."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the vocabulary's scores for hidden states, (n, vocab_size) in float32."""
        ...
