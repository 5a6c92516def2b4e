"""8-bit numbers with one scale for each 64 of them, so that no scale ever spans two requests, or two outputs.

Each 64 numbers are spread before they are rounded: turned by Hadamard's matrix, which shares one large number among
all of them, so that it does not take the scale from the others. A product of spread rows with a spread weight is the
product that it was, for the matrix is orthogonal.

What the kernels do in integers, done in floats: the twin that they are tested against, and what runs without them.
"""

import torch
from torch.nn.functional import linear, pad

GROUP = 64

SCHEME = "spread-64"
"""What int8 means here; what was measured of another meaning says nothing of this one."""


def spread(values: torch.Tensor) -> torch.Tensor:
    """Return ``values`` (..., n) in float32 with each 64 turned by Hadamard's matrix; twice gives ``values`` again.

    Sums are in the kernels' order, so both have the same bits.
    """
    turned = values.float().reshape(-1, GROUP)
    distance = GROUP // 2
    while distance:
        one, other = turned.view(-1, GROUP // (2 * distance), 2, distance).unbind(dim=2)
        turned = torch.stack([one + other, one - other], dim=2).reshape(-1, GROUP)
        distance //= 2
    result: torch.Tensor = (turned / GROUP**0.5).view(values.shape)
    return result


def quantise(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 numbers like ``values`` (..., n), spread, and their scales (..., n / 64); n is a multiple of 64."""
    groups = spread(values).view(*values.shape[:-1], -1, GROUP)
    scales = groups.abs().amax(dim=-1) / 127
    inverse = torch.where(scales > 0, 1 / scales, 0.0)
    numbers = (groups * inverse[..., None]).round()
    return numbers.to(torch.int8).flatten(-2), scales


def rounded(values: torch.Tensor) -> torch.Tensor:
    """Return ``values`` (..., n) as what 8 bits keep of them, spread, in float32 and padded to a multiple of 64."""
    numbers, scales = quantise(pad(values, (0, -values.shape[-1] % GROUP)))
    result: torch.Tensor = (numbers.view(*scales.shape, GROUP) * scales[..., None]).flatten(-2)
    return result


class RoundedLinear:
    """A linear layer whose weight and rows are rounded to 8 bits: as exact as the kernels, and slow."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = rounded(weight)
        self._bias = None if bias is None else bias.float()

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (n, in) to rows (n, out), in the rows' type."""
        return linear(rounded(rows), self._weight, self._bias).to(rows.dtype)
