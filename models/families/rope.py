"""Rotary position embedding (Su et al. 2021), with the linear and the Llama 3 scaling of its frequencies."""

import math

import torch

from headrace.models.families.llama import Rope


def inverse_frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """Return the angle per position, in radians, for each pair of dimensions: (head_dim / 2,)."""
    plain = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim))
    if rope.type == "linear":
        return plain / rope.factor
    if rope.type == "llama3":
        return _llama3(plain, rope)
    return plain


def _llama3(plain: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Divide low frequencies by ``factor``, keep high ones, and interpolate between them (Llama 3.1)."""
    wavelength = 2 * math.pi / plain
    rotations = rope.original_context / wavelength
    blend = ((rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return (1 - blend) * plain / rope.factor + blend * plain


class RopeTable:
    """Cosines and sines of every position, (context, 1, head_dim), computed once.

    The first half of the sines is negated, so that the rotation is ``x * cos + swap_halves(x) * sin``.
    """

    def __init__(self, rope: Rope, head_dim: int, context: int, dtype: torch.dtype, device: torch.device) -> None:
        angles = torch.outer(torch.arange(context, dtype=torch.float), inverse_frequencies(rope, head_dim))
        self.cos = torch.cat([angles.cos()] * 2, dim=-1).to(device, dtype)[:, None]
        self.sin = torch.cat([-angles.sin(), angles.sin()], dim=-1).to(device, dtype)[:, None]


def rotate_(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotate ``heads`` (n, heads, head_dim) in place by ``cos`` and ``sin`` of the positions, (n, 1, head_dim)."""
    half = heads.shape[-1] // 2
    swapped = torch.cat((heads[..., half:], heads[..., :half]), dim=-1)
    heads.mul_(cos).addcmul_(swapped, sin)
