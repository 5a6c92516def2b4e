"""Memory on the CPU for what is read whole in every step: weights, keys and values.

In pages of 4 kB a pass over 256 MB looks up 65,536 addresses, and finds none of them remembered after a pause. In huge
pages (Linux, where ``/sys/kernel/mm/transparent_hugepage/enabled`` is ``madvise`` or ``always``) it is 128. Elsewhere,
or when no memory is left in one piece, the pages are ordinary ones and all else is the same.
"""

import contextlib
import math
import mmap

import torch

_HUGE = 2 << 20
_CHUNK = 16 * _HUGE
_LINE = 64  # bytes of a cache line: what the kernels' loads are aligned to


def zeros(num_values: int, dtype: torch.dtype) -> torch.Tensor:
    """Return (num_values,) zeros that take memory when they are first written."""
    num_bytes = num_values * dtype.itemsize
    # Private: what is shared between processes gets no huge pages.
    mapped = mmap.mmap(-1, num_bytes + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(mapped, dtype=torch.uint8)
    begin = -whole.data_ptr() % _HUGE
    return whole[begin : begin + num_bytes].view(dtype)


class Arena:
    """Keeps tensors one behind the other, so that small ones share huge pages too. All live as long as the last."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a contiguous copy of a tensor on the CPU, in the arena's memory."""
        num_bytes = tensor.numel() * tensor.dtype.itemsize
        begin = math.ceil(self._used / _LINE) * _LINE
        if begin + num_bytes > len(self._chunk):
            self._chunk, begin = zeros(max(_CHUNK, num_bytes), torch.uint8), 0
        self._used = begin + num_bytes
        kept = self._chunk[begin : self._used].view(tensor.dtype).view(tensor.shape)
        return kept.copy_(tensor)
