"""Linear layers for inference: on the CPU, weights are packed once for its matrix kernels.

oneDNN multiplies few rows by a packed weight up to three times as fast as by an unpacked one. The two operators are
private to torch. So they are tested once, and not used if they are missing or wrong.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch.nn import functional

from headrace.models.tensors.quantised import RoundedLinear

Linear = Callable[[torch.Tensor], torch.Tensor]
"""Rows (n, in) to rows (n, out)."""

_ROWS_HINT = 32  # the packing is chosen for this number of rows: a decode batch


def _packed(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)  # noqa: SLF001 - see the module's docstring
    pointwise = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 - see the module's docstring

    def linear(rows: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = pointwise(rows, packed, bias, "none", [], "")
        return result

    return linear


def _plain(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    return lambda rows: functional.linear(rows, weight, bias)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Return True if this build of torch multiplies packed weights of this type correctly on this CPU."""
    weight = torch.linspace(-1, 1, 48 * 32).view(48, 32).to(dtype)
    rows = torch.linspace(-1, 1, 3 * 32).view(3, 32).to(dtype)
    bias = torch.ones(48, dtype=dtype)
    try:
        result = _packed(weight, bias)(rows)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    return torch.allclose(result.float(), _plain(weight, bias)(rows).float(), atol=tolerance)


def _join_biases(
    weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None], dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    if all(bias is None for bias in biases):
        return None
    parts = [
        torch.zeros(weight.shape[0]) if bias is None else bias for weight, bias in zip(weights, biases, strict=True)
    ]
    return torch.cat([part.to(dtype) for part in parts]).to(device)


def make_linear(
    weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None], dtype: torch.dtype, device: torch.device
) -> Linear:
    """Return one linear layer for all ``weights``, each (out, in). Its output is their outputs side by side.

    If some biases are None, they count as zeros. int8 is for the CPU only.
    """
    if dtype == torch.int8:
        return RoundedLinear(torch.cat(list(weights)), _join_biases(weights, biases, torch.float32, device))
    weight = torch.cat([part.to(dtype) for part in weights]) if len(weights) > 1 else weights[0].to(dtype)
    bias = _join_biases(weights, biases, dtype, device)
    if device.type == "cpu" and can_pack(dtype):
        return _packed(weight.contiguous(), bias)
    return _plain(weight.to(device), bias)
