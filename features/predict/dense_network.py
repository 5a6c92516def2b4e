"""A network over rows on torch: numbers and embeddings in, then dense layers.

Tensors of ``model.safetensors``: ``embeddings.FEATURE.weight``, then ``layers.0.weight`` and ``layers.0.bias`` up to
the last layer, as ``torch.nn.Embedding`` and ``torch.nn.Linear`` have them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn.functional import linear

from headrace.features.predict.inputs import Activation, DenseConfig
from headrace.models.families.safetensors_reader import Weights

_ACTIVATIONS = {
    Activation.RELU: torch.relu,
    Activation.SILU: torch.nn.functional.silu,
    Activation.TANH: torch.tanh,
}


@dataclass(frozen=True, slots=True)
class DenseNetwork:
    """The weights of a model. ``embeddings``: by feature with categories; ``layers``: weight and bias of each."""

    config: DenseConfig
    embeddings: tuple[torch.Tensor, ...]
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    def inputs(self, numbers: Sequence[Sequence[float]], categories: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the inputs of the first layer, (rows, width), for encoded rows."""
        like = self.layers[0][0]
        columns = torch.tensor(numbers, dtype=like.dtype).to(like.device).reshape(len(numbers), -1)
        chosen = torch.tensor(categories).to(like.device)
        parts = [table[chosen[:, place]] for place, table in enumerate(self.embeddings)]
        return torch.cat([columns, *parts], dim=1)

    def baseline(self) -> torch.Tensor:
        """Return the inputs of a neutral row, (width,): the mean of each number, and of each embedding its mean."""
        like = self.layers[0][0]
        columns = torch.zeros(self.config.num_columns, dtype=like.dtype, device=like.device)
        return torch.cat([columns, *(table.mean(0) for table in self.embeddings)])

    def last(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the last layer, (rows, outputs)."""
        act = _ACTIVATIONS[self.config.activation]
        hidden = inputs
        for number, (weight, bias) in enumerate(self.layers):
            hidden = linear(act(hidden) if number else hidden, weight, bias)
        return hidden

    def to(self, target: torch.device | torch.dtype) -> "DenseNetwork":
        """Return the network on another device or in another number format."""
        return DenseNetwork(
            self.config,
            tuple(table.to(target) for table in self.embeddings),
            tuple((weight.to(target), bias.to(target)) for weight, bias in self.layers),
        )


def read_network(weights: Weights, config: DenseConfig, num_outputs: int, prefix: str = "") -> DenseNetwork:
    """Read a network as float32; ``prefix`` is before the name of each tensor.

    Raises ModelLoadError if a tensor is missing or has another shape.
    """
    width = config.num_columns + sum(feature.dimensions for feature in config.categorical)
    widths = (width, *config.hidden, num_outputs)
    embeddings = tuple(
        weights.get(f"{prefix}embeddings.{feature.name}.weight", (feature.num_rows, feature.dimensions)).float()
        for feature in config.categorical
    )
    layers = tuple(
        (
            weights.get(f"{prefix}layers.{number}.weight", (into, out_of)).float(),
            weights.get(f"{prefix}layers.{number}.bias", (into,)).float(),
        )
        for number, (out_of, into) in enumerate(pairwise(widths))
    )
    return DenseNetwork(config, embeddings, layers)
