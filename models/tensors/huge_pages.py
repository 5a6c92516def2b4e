"""Huge pages for CPU memory that every step reads: weights, keys and values.

A pass over 256 MB needs 65,536 address translations with pages of 4 kB, and 128 with huge pages of 2 MB. They need
Linux with ``/sys/kernel/mm/transparent_hugepage/enabled`` set to ``madvise`` or ``always``. Otherwise, or if memory is
fragmented, the system uses ordinary pages and nothing else changes.
"""

import contextlib
import math
import mmap

import torch

_HUGE = 2 << 20
_CHUNK = 16 * _HUGE
_LINE = 64  # bytes of a cache line; the kernels load aligned


def zeros(num_values: int, dtype: torch.dtype) -> torch.Tensor:
    """Return (num_values,) zeros. Memory is allocated at the first write."""
    num_bytes = num_values * dtype.itemsize
    # Private, because shared mappings get no huge pages.
    mapped = mmap.mmap(-1, num_bytes + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(mapped, dtype=torch.uint8)
    begin = -whole.data_ptr() % _HUGE
    return whole[begin : begin + num_bytes].view(dtype)


class Arena:
    """Allocates tensors one after another, so that small ones share huge pages. All live as long as the last one."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a contiguous copy of a CPU tensor, in the memory of the arena."""
        num_bytes = tensor.numel() * tensor.dtype.itemsize
        begin = math.ceil(self._used / _LINE) * _LINE
        if begin + num_bytes > len(self._chunk):
            self._chunk, begin = zeros(max(_CHUNK, num_bytes), torch.uint8), 0
        self._used = begin + num_bytes
        kept = self._chunk[begin : self._used].view(tensor.dtype).view(tensor.shape)
        return kept.copy_(tensor)
