"""The interfaces between the runner and a model: batch builder, KV cache, forward pass and logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from headrace.models.engine.requests import Adapter
from headrace.models.engine.runner import Row, StepPlan
from headrace.models.families.lora import AdapterLayers
from headrace.models.families.model_config import ModelConfig


class ForwardBatch(Protocol):
    """The input of one forward pass."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of the plan, in the order of the pass."""
        ...

    @property
    def ends(self) -> tuple[int, ...]:
        """The index of the last token of each row, in the pass."""
        ...


class BatchBuilder(Protocol):
    """Builds the batches of one model and cache."""

    def build(self, plan: StepPlan) -> Any:
        """Return the batch of a plan, in the format of the model."""
        ...

    def send(self, values: Sequence[int]) -> torch.Tensor:
        """Return a tensor of these numbers on the device of the model. Does not wait for the device."""
        ...


class Cache(Protocol):
    """Keys and values of every layer, in blocks that the scheduler allocates."""

    num_blocks: int
    block_tokens: int

    def clear(self, blocks: torch.Tensor) -> None:
        """Set blocks to zero in every layer."""
        ...


class CausalModel(Protocol):
    """The weights and the forward pass. The results of a row depend on its own tokens only, not on the batch."""

    has_fast_int8: bool
    """True if int8 weights run faster than bfloat16 here."""

    @property
    def config(self) -> ModelConfig:
        """The configuration of the model."""
        ...

    def forward(self, batch: Any, cache: Any) -> torch.Tensor:
        """Run the tokens of a batch and store their keys and values. Return the hidden states, one row a token.

        A row whose request has an adapter, which must be this model's, is computed with it.
        """
        ...

    def pack_adapter(self, key: str, layers: AdapterLayers) -> Adapter:
        """Return an adapter for requests to this model, in the format of its weights. May run beside ``forward``.

        Raises ModelLoadError if the model runs no adapters.
        """
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden states, (n, vocab_size) in float32."""
        ...


@dataclass(frozen=True, slots=True)
class ModelWithCache:
    """A model with its KV cache and its batch builder."""

    model: CausalModel
    cache: Cache
    batch_builder: BatchBuilder
