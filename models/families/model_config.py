"""The sizes of a causal model that the code outside its family needs: context, vocabulary, KV cache, attention windows.

Imports neither torch nor transformers, so that the API can read it.
"""

from collections.abc import Mapping
from typing import Protocol

from headrace.store.errors import ModelLoadError


class UnsupportedArchitecture(ModelLoadError):
    """The family does not support this model. The transformers fallback may."""


class ModelConfig(Protocol):
    """The sizes of a causal model. ``windows`` has one entry a layer: its sliding window in tokens, or None."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_window(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def num_kv_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def windows(self) -> tuple[int | None, ...]: ...


def quantized_elsewhere(quantization: object) -> str:
    """Return why weights that another program quantized do not run here. ``quantization``: of ``config.json``."""
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    return (
        f"the weights are quantized ({method or 'by a method that config.json does not name'}), and Headrace's engine "
        "reads float weights alone: register the folder with `--engine vllm`, or give float weights and quantize them "
        "with `headrace models quantize`"
    )
