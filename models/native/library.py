"""ctypes bindings of the compiled kernels. The structs mirror those of ``src/forward.cpp`` and ``src/linear.h``."""

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_double, c_int, c_int64, c_void_p
from pathlib import Path

import torch

from headrace.models.native.layout import Packed

_VERSION = 4

NO_MEMORY, INTERRUPTED = 1, 2
"""Results of a pass that did not finish; 0 is success."""


class LinearStruct(Structure):
    """A packed linear layer."""

    _fields_ = (
        ("weight", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int64),
        ("panels", c_int64),
        ("format", c_int64),
    )

    @classmethod
    def of(cls, packed: Packed) -> "LinearStruct":
        """Return a struct that points to a packed layer, which must outlive it."""
        address = pointer_of
        return cls(
            address(packed.weight),
            address(packed.scales),
            address(packed.bias),
            packed.inputs,
            packed.panels,
            packed.format,
        )


class LayerStruct(Structure):
    """One decoder layer."""

    _fields_ = (
        ("attention_norm", c_void_p),
        ("qkv", LinearStruct),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("out", LinearStruct),
        ("mlp_norm", c_void_p),
        ("gate_up", LinearStruct),
        ("down", LinearStruct),
        ("window", c_int64),
    )


class ModelStruct(Structure):
    """The sizes, the layers and the output head."""

    _fields_ = (
        ("num_layers", c_int64),
        ("hidden", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("threads", c_int64),
        ("eps", c_double),
        ("scale", c_double),
        ("embedding", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("cache_format", c_int64),
        ("layers", POINTER(LayerStruct)),
        ("norm", c_void_p),
        ("head", LinearStruct),
    )


class LowRankStruct(Structure):
    """One module of a low-rank adapter."""

    _fields_ = (
        ("a", c_void_p),
        ("b", c_void_p),
        ("rank", c_int64),
        ("first", c_int64),
        ("stride", c_int64),
        ("blocks", c_int64),
    )


class PassStruct(Structure):
    """Input and output of one pass.

    A sequence is five int64: first row, rows, first position, address of the page table, address of its adapter's
    modules (``LowRankStruct``, seven for each layer; 0: none).
    """

    _fields_ = (
        ("num_tokens", c_int64),
        ("num_sequences", c_int64),
        ("tokens", c_void_p),
        ("sequences", c_void_p),
        ("hidden", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("pages", c_int64),
        ("interrupt", c_void_p),
    )


def pointer_of(tensor: torch.Tensor | None) -> int | None:
    """Return the address of a tensor's data. The tensor must be contiguous and outlive the pointer."""
    if tensor is None:
        return None
    if not tensor.is_contiguous():
        raise ValueError("the kernels read contiguous tensors only")
    return tensor.data_ptr()


class Kernels:
    """The functions of the library. A call releases the GIL."""

    def __init__(self, path: Path) -> None:
        """Load a library. Raises OSError if it is not one, or was built from another version of the sources."""
        self._library = ctypes.CDLL(str(path))
        self._declare("headrace_version", c_int64)
        if self._library.headrace_version() != _VERSION:
            raise OSError(f"{path} was built from other sources")
        self._declare("headrace_isa", c_char_p)
        self._declare("headrace_open", c_void_p)
        self._declare("headrace_close", None, c_void_p)
        self._declare("headrace_layers", c_int, POINTER(ModelStruct), POINTER(PassStruct), c_void_p)
        self._declare("headrace_logits", None, POINTER(ModelStruct), c_void_p, c_void_p, c_int64, c_void_p, c_void_p)
        self._declare("headrace_linear", None, POINTER(LinearStruct), c_void_p, c_int64, c_void_p, c_int64)
        self.open = self._library.headrace_open
        self.close = self._library.headrace_close
        self.layers = self._library.headrace_layers
        self.logits = self._library.headrace_logits

    def _declare(self, name: str, result: type | None, *arguments: object) -> None:
        function = getattr(self._library, name)
        function.restype, function.argtypes = result, arguments

    @property
    def isa(self) -> str:
        """The instruction set that the kernels use on this machine."""
        name: bytes = self._library.headrace_isa()
        return name.decode()

    def linear(self, packed: Packed, rows: torch.Tensor, threads: int) -> torch.Tensor:
        """Return the product of ``rows`` (n, in) and one packed layer, float32 (n, padded out)."""
        padded = torch.nn.functional.pad(rows.float(), (0, packed.inputs - rows.shape[1])).contiguous()
        result = torch.empty(len(rows), packed.panels * 32)
        layer = LinearStruct.of(packed)
        self._library.headrace_linear(layer, pointer_of(padded), len(rows), pointer_of(result), threads)
        return result
