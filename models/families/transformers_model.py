"""A causal model of transformers on the paged KV cache: the modelling code of transformers with paged attention.

Slower than a family of our own. The outputs are the same, because the reference code computes everything but attention.
A pass is one flattened row of tokens with position ids. Tokens meet only in the attention function that is registered
here. The code depends on the calling conventions of transformers, not on any architecture.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM

from headrace.models.engine.requests import Adapter
from headrace.models.families.lora import AdapterLayers
from headrace.models.families.model_config import ModelConfig
from headrace.models.families.model_folder import weight_files
from headrace.models.families.transformers_probe import silence
from headrace.models.families.transformers_reader import read_with_transformers, refuse_faults
from headrace.models.tensors.attention import ScoreOptions, attend
from headrace.models.tensors.kv_cache import KvCache
from headrace.models.tensors.linear import can_pack, make_linear
from headrace.models.tensors.torch_batch import TorchBatch
from headrace.store.errors import ModelLoadError

_PAGED = "headrace_paged"


@dataclass(frozen=True, slots=True)
class _ForwardContext:
    """The state of the running pass that the attention of each layer needs."""

    batch: TorchBatch
    cache: KvCache
    windows: tuple[int | None, ...]


_current: ContextVar[_ForwardContext] = ContextVar("current")


def _paged(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: object,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """The attention function for transformers: (1, heads, n, head_dim) in, (1, n, heads, head_dim) out."""
    now, layer = _current.get(), module.layer_idx
    qkv = torch.cat((query[0], key[0], value[0])).transpose(0, 1)
    found = attend(qkv, query.shape[1], now.batch, now.cache, layer, now.windows[layer], ScoreOptions(scaling, softcap))
    return found.view(1, qkv.shape[0], query.shape[1], query.shape[3]), None


class _PackedLinear(nn.Module):
    """A linear layer with a weight that is packed for the matrix kernels of the CPU."""

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        weight, bias = original.weight.detach(), None if original.bias is None else original.bias.detach()
        self._num_out = original.out_features
        self._linear = make_linear([weight], [bias], weight.dtype, weight.device)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (..., out) for rows (..., in)."""
        return self._linear(rows.reshape(-1, rows.shape[-1])).view(*rows.shape[:-1], self._num_out)


class _Decoder:
    """The layers without the output head. Their result can be replaced, so that the code of the head runs alone."""

    def __init__(self, decoder: Any) -> None:
        self._layers = decoder.forward
        self._output_type: Any = None  # a dataclass of transformers
        self._result: Any = None
        decoder.forward = self._forward

    def _forward(self, *arguments: object, **named: object) -> Any:
        return self._layers(*arguments, **named) if self._result is None else self._result

    def hidden(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the hidden states of (n,) tokens, (n, hidden_size)."""
        found = self._layers(input_ids=tokens[None], position_ids=positions[None], use_cache=False)
        self._output_type = type(found)
        hidden: torch.Tensor = found.last_hidden_state[0]
        return hidden

    @contextmanager
    def returning(self, hidden: torch.Tensor) -> Iterator[None]:
        """Within this context, the layers return ``hidden`` (n, hidden_size) for any input."""
        self._result = self._output_type(last_hidden_state=hidden[None])
        try:
            yield
        finally:
            self._result = None


class TransformersModel:
    """A model that transformers has loaded. After ``page`` it is a ``CausalModel``."""

    has_fast_int8 = False

    def __init__(self, config: ModelConfig, original: Any) -> None:
        self.config = config
        self._original = original
        self._decoder = _Decoder(original.get_decoder())

    def page(self) -> None:
        """Replace the attention, and on a CPU the linear layers. At most one layer is in memory twice."""
        AttentionInterface.register(_PAGED, _paged)
        self._original.set_attn_implementation(_PAGED)
        if self._original.device.type == "cpu" and can_pack(self._original.dtype):
            _pack(self._original)

    def forward(self, batch: TorchBatch, cache: KvCache) -> torch.Tensor:
        """Run the tokens of a batch through all layers and store their keys and values. Return the hidden states."""
        token = _current.set(_ForwardContext(batch, cache, self.config.windows))
        try:
            return self._decoder.hidden(batch.tokens, batch.positions)
        finally:
            _current.reset(token)

    def pack_adapter(self, key: str, layers: AdapterLayers) -> Adapter:
        """Raise ModelLoadError: the family has no layers that are adaptable."""
        del layers
        raise ModelLoadError(f"{key}: transformers' own code runs no adapters here")

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden states (n, hidden_size), computed by the output head of transformers."""
        with self._decoder.returning(hidden):
            found: torch.Tensor = self._original(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return found.float()

    def reference_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits after each of ``tokens`` (n,) of one text, (n, vocab). Only before ``page``."""
        found: torch.Tensor = self._original(input_ids=tokens[None], use_cache=False).logits[0]
        return found.float()


def _pack(original: nn.Module) -> None:
    # A list of all modules would keep every unpacked weight in memory until the end.
    parents = [module for module in original.modules() if type(module) is not nn.Linear]
    for parent in parents:
        for name in [name for name, child in parent.named_children() if type(child) is nn.Linear]:
            setattr(parent, name, _PackedLinear(getattr(parent, name)))


def read_transformers_model(
    folder: Path, config: ModelConfig, *, dtype: torch.dtype, device: torch.device
) -> TransformersModel:
    """Return the model of a folder. Its architecture must have passed the probe. Its attention is not replaced yet.

    Raises ModelLoadError if weights are missing, pickled, or do not fit the configuration.
    """
    weight_files(folder)
    silence()
    original, found = read_with_transformers(AutoModelForCausalLM, folder, dtype=dtype, attention="eager")
    refuse_faults(folder, found)
    return TransformersModel(config, original.eval().requires_grad_(False).to(device))
