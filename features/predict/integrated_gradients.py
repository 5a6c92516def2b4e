"""Integrated gradients (Sundararajan et al. 2017): what each input of a differentiable function adds to its value.

The gradient is integrated along the straight line from a baseline to the input. So the contributions sum to the value
minus that of the baseline. The same holds for every part of the line, which shows where the integral is not exact yet:
such a part is halved, at most ``_MOST_HALVINGS`` times. A part is a Gauss-Legendre quadrature, in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

TOLERANCE = 1e-4
"""A part of the line may be wrong by so much. It is relative to ``scale``."""

_NUM_POINTS = 8
_MOST_HALVINGS = 10
_POINTS_TOGETHER = 16_384

Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Parts:
    """Parts of lines: the row of each, and where it begins and ends between 0 and 1."""

    row: torch.Tensor
    start: torch.Tensor
    end: torch.Tensor

    def __getitem__(self, which: slice | torch.Tensor) -> "_Parts":
        return _Parts(self.row[which], self.start[which], self.end[which])

    def halves(self) -> "_Parts":
        middle = (self.start + self.end) / 2
        return _Parts(self.row.repeat(2), torch.cat([self.start, middle]), torch.cat([middle, self.end]))


def integrated_gradients(
    function: Function, inputs: torch.Tensor, baseline: torch.Tensor, chosen: torch.Tensor, *, scale: float = 1.0
) -> torch.Tensor:
    """Return the contributions, of the shape (rows, width) of ``inputs``, which are float64.

    ``function`` maps (n, width) to (n, outputs); ``chosen`` (rows,) is the output of each row that is explained.
    ``baseline``: (width,). ``scale``: a usual difference between two values.
    """
    step = inputs - baseline
    found = torch.zeros_like(inputs)
    rows = torch.arange(len(inputs), device=inputs.device)
    pending = _Parts(rows, inputs.new_zeros(len(rows)), inputs.new_ones(len(rows)))
    for is_last in [False] * _MOST_HALVINGS + [True]:
        inexact = []
        for first in range(0, len(pending.row), _POINTS_TOGETHER // _NUM_POINTS):
            parts = pending[first : first + _POINTS_TOGETHER // _NUM_POINTS]
            values, errors = _integrated(function, step, baseline, chosen, parts)
            is_good = (errors.abs() <= TOLERANCE * scale) | is_last
            found.index_add_(0, parts.row[is_good], values[is_good])
            inexact.append(parts[~is_good].halves())
        pending = _Parts(*(torch.cat([getattr(one, name) for one in inexact]) for name in ("row", "start", "end")))
        if not len(pending.row):
            break
    return found


def _integrated(
    function: Function, step: torch.Tensor, baseline: torch.Tensor, chosen: torch.Tensor, parts: _Parts
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the integral over each part, (parts, width), and how far its sum is from the change of the value."""
    nodes, weights = (step.new_tensor(numbers) for numbers in _quadrature())
    length, direction, output = parts.end - parts.start, step[parts.row], chosen[parts.row]
    # The two ends of each part, then the points of its quadrature.
    places = torch.cat([parts.start[None], parts.end[None], parts.start + nodes[:, None] * length])
    with torch.enable_grad():
        points = (baseline + places[:, :, None] * direction).flatten(0, 1).requires_grad_()
        values = function(points).gather(1, output.repeat(len(places))[:, None]).reshape(len(places), -1)
        (gradients,) = torch.autograd.grad(values[2:].sum(), points)
    slopes = gradients.reshape(len(places), *direction.shape)[2:]
    integral = direction * length[:, None] * torch.einsum("p,prw->rw", weights, slopes)
    return integral, (values[1] - values[0]).detach() - integral.sum(1)


@cache
def _quadrature() -> tuple[list[float], list[float]]:
    """Return the points and weights of the quadrature on the interval from 0 to 1."""
    # Golub and Welsch (1969): the eigenvalues of the Jacobi matrix are the points between -1 and 1.
    order = torch.arange(1, _NUM_POINTS, dtype=torch.float64)
    beside = (order / (4 * order**2 - 1).sqrt()).diag(1)
    nodes, vectors = torch.linalg.eigh(beside + beside.T)
    return ((nodes + 1) / 2).tolist(), (vectors[0] ** 2).tolist()
