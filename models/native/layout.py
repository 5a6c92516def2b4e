"""Packs weights into the layouts of the kernels, which ``src/linear.h`` shows. Runs once, when a model is loaded."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import pad

from headrace.models.tensors.quantised import GROUP, quantise

PANEL = 32
PAGE = 16

_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


@dataclass(frozen=True, slots=True)
class Packed:
    """One linear layer: ``weight`` in panels, ``scales`` for int8 or None, ``bias`` padded to the panels or None."""

    weight: torch.Tensor
    scales: torch.Tensor | None
    bias: torch.Tensor | None
    inputs: int
    panels: int

    @property
    def format(self) -> int:
        """The number of the weight format, as ``Format`` in ``src/linear.h``."""
        return _FORMATS[self.weight.dtype]

    def copied(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> "Packed":
        """Return the layer with copies of its tensors."""
        scales, bias = (None if each is None else copy(each) for each in (self.scales, self.bias))
        return replace(self, weight=copy(self.weight), scales=scales, bias=bias)


def round_up(count: int, multiple: int) -> int:
    """Return ``count`` rounded up to a multiple."""
    return -(-count // multiple) * multiple


def pack(weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> Packed:
    """Pack ``weight`` (out, in) and ``bias`` (out,) as float32, bfloat16 or int8."""
    outputs, inputs = weight.shape
    padded_outputs, padded_inputs = round_up(outputs, PANEL), round_up(inputs, GROUP)
    whole = pad(weight.float(), (0, padded_inputs - inputs, 0, padded_outputs - outputs))
    padded_bias = None if bias is None else pad(bias.float(), (0, padded_outputs - outputs)).contiguous()
    panels = whole.view(-1, PANEL, padded_inputs)
    scales = None
    if dtype == torch.float32:
        packed = panels.transpose(1, 2).contiguous()
    elif dtype == torch.bfloat16:
        packed = _interleave(panels.to(dtype), block=32, together=2)
    else:
        numbers, scales = quantise(panels)
        packed = _interleave(numbers, block=GROUP, together=4)
        scales = scales.transpose(1, 2).contiguous()
    return Packed(packed, scales, padded_bias, padded_inputs, len(panels))


def _interleave(panels: torch.Tensor, *, block: int, together: int) -> torch.Tensor:
    """Cut the inputs of each panel into blocks, and interleave groups of ``together`` inputs of each of 16 outputs."""
    count, _, inputs = panels.shape
    cut = panels.view(count, 2, 16, inputs // block, block // together, together)
    return cut.permute(0, 3, 1, 4, 2, 5).contiguous()


def interleave_gate_up(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Interleave the rows of both (out, in) in blocks of 16: 16 gates, then their 16 ups. Pads to whole panels."""
    missing = round_up(gate.shape[0], PAGE) - gate.shape[0]
    widths = (0,) * (2 * gate.dim() - 1) + (missing,)
    both = torch.stack([pad(part, widths).view(-1, PAGE, *part.shape[1:]) for part in (gate, up)], dim=1)
    return both.flatten(0, 2)


def pack_low_rank(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack ``a`` (rank, in) and ``b`` (out, rank) of an adapter for ``src/low_rank.h``, in float32 or bfloat16.

    Returns ``a`` padded to whole groups of inputs, and ``b`` as (blocks of 16 outputs, rank, 16).
    """
    rank, outputs = a.shape[0], b.shape[0]
    wide = pad(a, (0, round_up(a.shape[1], GROUP) - a.shape[1]))
    blocks = pad(b, (0, 0, 0, round_up(outputs, PAGE) - outputs)).view(-1, PAGE, rank).transpose(1, 2)
    return wide.to(dtype).contiguous(), blocks.to(dtype).contiguous()
