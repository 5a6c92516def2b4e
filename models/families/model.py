"""What a runner needs of a model, whatever its architecture."""

from typing import Protocol

import torch

from models.batch import Batch
from models.families.geometry import Geometry
from models.kv_cache import KvCache


class CausalModel(Protocol):
    """The weights and the pass. A row's results depend on its request's tokens alone, not on its batch mates."""

    @property
    def config(self) -> Geometry:
        """The sizes that the cache and the batches are made for."""
        ...

    def forward(self, batch: Batch, cache: KvCache) -> torch.Tensor:
        """Run the batch's n tokens, storing their keys and values; return the hidden states, (n, hidden_size)."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the vocabulary's scores for hidden states (n, hidden_size) in float32, (n, vocab)."""
        ...
