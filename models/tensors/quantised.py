"""Quantisation to 8 bits, with one scale for each group of 64 numbers of one row or one output.

A Hadamard transform is applied to each group before it is rounded. It spreads an outlier over the group, so that the
outlier does not set the scale for all others. The transform is orthogonal, so the product of transformed rows with
transformed weights does not change.

This is the kernels' arithmetic in floats. The tests compare both, and it runs on machines without the kernels.
"""

import torch
from torch.nn.functional import linear, pad

GROUP = 64

SCHEME = "spread-64"
"""The name of this quantisation, in the file names of quality reports. A report of another scheme is not used."""


def hadamard(values: torch.Tensor) -> torch.Tensor:
    """Return the normalised Hadamard transform of each 64 of ``values`` (..., n), in float32. It is its own inverse.

    The order of the sums is that of the kernels, so both have the same bits.
    """
    mixed = values.float().reshape(-1, GROUP)
    distance = GROUP // 2
    while distance:
        one, other = mixed.view(-1, GROUP // (2 * distance), 2, distance).unbind(dim=2)
        mixed = torch.stack([one + other, one - other], dim=2).reshape(-1, GROUP)
        distance //= 2
    result: torch.Tensor = (mixed / GROUP**0.5).view(values.shape)
    return result


def quantise(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Transform and round ``values`` (..., n) to int8. Return the numbers and their scales (..., n / 64).

    n must be a multiple of 64.
    """
    groups = hadamard(values).view(*values.shape[:-1], -1, GROUP)
    scales = groups.abs().amax(dim=-1) / 127
    inverse = torch.where(scales > 0, 1 / scales, 0.0)
    numbers = (groups * inverse[..., None]).round()
    return numbers.to(torch.int8).flatten(-2), scales


def round_to_int8(values: torch.Tensor) -> torch.Tensor:
    """Return ``values`` (..., n) transformed and rounded to 8 bits, in float32, padded to a multiple of 64."""
    numbers, scales = quantise(pad(values, (0, -values.shape[-1] % GROUP)))
    result: torch.Tensor = (numbers.view(*scales.shape, GROUP) * scales[..., None]).flatten(-2)
    return result


class RoundedLinear:
    """A linear layer with weights and rows rounded to 8 bits: the results of the kernels, but slow."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = round_to_int8(weight)
        self._bias = None if bias is None else bias.float()

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows (n, out) for rows (n, in), in the type of the rows."""
        return linear(round_to_int8(rows), self._weight, self._bias).to(rows.dtype)
