"""LoRA adapters for the CPU kernels: packed once when they are loaded, and found by their address in each pass."""

import ctypes

import torch

from headrace.models.families.llama import LlamaConfig
from headrace.models.families.lora import AdapterLayers
from headrace.models.native.layout import PAGE, PANEL, pack_low_rank
from headrace.models.native.library import LowRankStruct, pointer_of

_INTERLEAVED = {"mlp.gate_proj": 0, "mlp.up_proj": PAGE}
_ORDER = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""As ``Module`` in ``src/low_rank.h``."""


class NativeAdapter:
    """An adapter in memory. ``address`` is that of its table: seven ``LowRankStruct`` for each layer."""

    def __init__(self, key: str, layers: AdapterLayers, config: LlamaConfig, dtype: torch.dtype) -> None:
        """Pack the weights as ``dtype``, float32 or bfloat16."""
        self.key = key
        self._kept: list[torch.Tensor] = []
        self._table = (LowRankStruct * (len(_ORDER) * len(layers)))()
        all_heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        first = {"self_attn.k_proj": all_heads, "self_attn.v_proj": all_heads + kv_heads} | _INTERLEAVED
        for index, modules in enumerate(layers):
            for name, low_rank in modules.items():
                a, b = pack_low_rank(low_rank.a, low_rank.b, dtype)
                self._kept += (a, b)
                self._table[index * len(_ORDER) + _ORDER.index(name)] = LowRankStruct(
                    pointer_of(a),
                    pointer_of(b),
                    low_rank.rank,
                    first.get(name, 0),
                    PANEL if name in _INTERLEAVED else PAGE,
                    len(b),
                )

    @property
    def address(self) -> int:
        """The address of the table. It is valid while this object lives."""
        return ctypes.addressof(self._table)
