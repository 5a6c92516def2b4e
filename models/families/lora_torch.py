"""LoRA adapters on torch: the tokens of a pass are grouped by their adapter; a group has one product a module."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from headrace.models.engine.runner import Row
from headrace.models.families.lora import AdapterLayers, LowRank

JOINED: Mapping[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""The modules of each joined linear layer, whose results stand side by side."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What is added to the columns ``first`` to ``last - 1`` of a joined layer: ``a`` (in, rank), ``b`` (rank, out)."""

    first: int
    last: int
    a: torch.Tensor
    b: torch.Tensor


class TorchAdapter:
    """An adapter in memory. ``sizes`` are the inputs and outputs of each module."""

    def __init__(
        self,
        key: str,
        layers: AdapterLayers,
        sizes: Mapping[str, tuple[int, int]],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.key = key

        def parts(modules: Mapping[str, LowRank], joined: tuple[str, ...]) -> list[_Part]:
            found, first = [], 0
            for name in joined:
                last = first + sizes[name][1]
                if name in modules:
                    a, b = (each.T.to(device, dtype).contiguous() for each in (modules[name].a, modules[name].b))
                    found.append(_Part(first, last, a, b))
                first = last
            return found

        self._layers = [{name: parts(modules, joined) for name, joined in JOINED.items()} for modules in layers]

    def add_to(self, result: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, layer: int, name: str) -> None:
        """Add to the ``tokens`` of ``result`` what the adapter adds to a joined layer, whose inputs are ``rows``."""
        parts = self._layers[layer][name]
        if not parts:
            return
        own = rows[tokens]
        added = result[tokens]
        for part in parts:
            added[:, part.first : part.last] += (own @ part.a) @ part.b
        result[tokens] = added


@dataclass(frozen=True, slots=True)
class AdaptedTokens:
    """The tokens of a pass that one adapter changes, as their indices."""

    adapter: TorchAdapter
    tokens: torch.Tensor


def adapted_tokens(rows: Sequence[Row], ends: Sequence[int], device: torch.device) -> list[AdaptedTokens]:
    """Group the tokens of a pass by their adapter. ``ends`` are the indices of the last tokens of the rows."""
    found: dict[str, tuple[TorchAdapter, list[int]]] = {}
    for row, end in zip(rows, ends, strict=True):
        adapter = row.request.adapter
        if adapter is not None:
            if not isinstance(adapter, TorchAdapter):
                raise TypeError(f"{adapter.key} was loaded for another model")
            found.setdefault(adapter.key, (adapter, []))[1].extend(range(end + 1 - len(row.tokens), end + 1))
    return [AdaptedTokens(adapter, torch.tensor(tokens, device=device)) for adapter, tokens in found.values()]
