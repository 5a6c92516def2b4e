"""Any causal architecture of transformers over the paged cache: its own modelling code, with our attention inside.

Slower than a fast path of our own, and the same answers: the code that is the reference computes everything but
attention. A pass is one flattened row of tokens, whose positions say where in its request each stands; keys and values
meet only in the attention function that is registered here. Knows transformers' ways of calling, and no architecture.
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

from models.families.geometry import Geometry
from models.families.model_folder import weight_files
from models.families.original import read_original, refuse_faults
from models.families.probe import silence
from models.tensors.attention import Scores, attend
from models.tensors.batch import Batch
from models.tensors.kv_cache import KvCache
from models.tensors.linear import can_pack, make_linear

_PAGED = "headrace_paged"


@dataclass(frozen=True, slots=True)
class _Pass:
    """What the attention of every layer needs of the pass that is running now."""

    batch: Batch
    cache: KvCache
    windows: tuple[int | None, ...]


_current: ContextVar[_Pass] = ContextVar("current")


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
    """Called by transformers in place of attention: (1, heads, n, head_dim) in, (1, n, heads, head_dim) out."""
    now, layer = _current.get(), module.layer_idx
    qkv = torch.cat((query[0], key[0], value[0])).transpose(0, 1)
    found = attend(qkv, query.shape[1], now.batch, now.cache, layer, now.windows[layer], Scores(scaling, softcap))
    return found.view(1, qkv.shape[0], query.shape[1], query.shape[3]), None


class _PackedLinear(nn.Module):
    """A linear layer whose weight is laid out for the CPU's matrix kernels."""

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        weight, bias = original.weight.detach(), None if original.bias is None else original.bias.detach()
        self._num_out = original.out_features
        self._linear = make_linear([weight], [bias], weight.dtype, weight.device)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply (..., in) to (..., out)."""
        return self._linear(rows.reshape(-1, rows.shape[-1])).view(*rows.shape[:-1], self._num_out)


class _Decoder:
    """The architecture's layers without its head, whose result can be replaced: the head's own code reads it then."""

    def __init__(self, decoder: Any) -> None:
        self._layers = decoder.forward
        self._kind: Any = None  # of what the layers return: a dataclass of transformers
        self._result: Any = None
        decoder.forward = self._forward

    def _forward(self, *arguments: object, **named: object) -> Any:
        return self._layers(*arguments, **named) if self._result is None else self._result

    def hidden(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return what the layers make of (n,) tokens, (n, hidden_size)."""
        found = self._layers(input_ids=tokens[None], position_ids=positions[None], use_cache=False)
        self._kind = type(found)
        hidden: torch.Tensor = found.last_hidden_state[0]
        return hidden

    @contextmanager
    def giving(self, hidden: torch.Tensor) -> Iterator[None]:
        """Within, the layers' result is ``hidden`` (n, hidden_size) whatever they are called with."""
        self._result = self._kind(last_hidden_state=hidden[None])
        try:
            yield
        finally:
            self._result = None


class GenericModel:
    """A model that transformers has loaded: a ``CausalModel`` once ``page`` has put the paged attention into it."""

    def __init__(self, config: Geometry, original: Any) -> None:
        self.config = config
        self._original = original
        self._decoder = _Decoder(original.get_decoder())

    def page(self) -> None:
        """Replace the original's attention, and on a CPU its linear layers; one layer is in memory twice at a time."""
        AttentionInterface.register(_PAGED, _paged)
        self._original.set_attn_implementation(_PAGED)
        if self._original.device.type == "cpu" and can_pack(self._original.dtype):
            _pack(self._original)

    def forward(self, batch: Batch, cache: KvCache) -> torch.Tensor:
        """Run the batch's tokens through all layers, storing their keys and values; return the hidden states."""
        token = _current.set(_Pass(batch, cache, self.config.windows))
        try:
            return self._decoder.hidden(batch.tokens, batch.positions)
        finally:
            _current.reset(token)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the vocabulary's scores for hidden states (n, hidden_size), by the architecture's own head."""
        with self._decoder.giving(hidden):
            found: torch.Tensor = self._original(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return found.float()

    def original_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what the original says after each of ``tokens`` (n,) of one text: (n, vocab). Before ``page`` only."""
        found: torch.Tensor = self._original(input_ids=tokens[None], use_cache=False).logits[0]
        return found.float()


def _pack(original: nn.Module) -> None:
    # A list of all modules would keep every plain weight until the end.
    parents = [module for module in original.modules() if type(module) is not nn.Linear]
    for parent in parents:
        for name in [name for name, child in parent.named_children() if type(child) is nn.Linear]:
            setattr(parent, name, _PackedLinear(getattr(parent, name)))


def read_generic(folder: Path, config: Geometry, *, dtype: torch.dtype, device: torch.device) -> GenericModel:
    """Return the model of a folder whose architecture has passed the probe, with its own attention still.

    Raises ModelLoadError if weights are missing, pickled, or do not fit the configuration.
    """
    weight_files(folder)
    silence()
    original, found = read_original(AutoModelForCausalLM, folder, dtype=dtype, attention="eager")
    refuse_faults(folder, found)
    return GenericModel(config, original.eval().requires_grad_(False).to(device))
