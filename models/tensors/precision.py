"""Resolves the settings for device and number format to torch's types."""

import torch

from headrace.store.errors import CannotLoadHere, ModelLoadError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


def resolve_device(name: str) -> torch.device:
    """Return the device for a setting. ``auto`` is CUDA if the machine has it, else the CPU.

    Raises ModelLoadError for an unknown name or a missing CUDA device.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CannotLoadHere(f"device {name!r} is not known: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (not has_cuda or (device.index or 0) >= torch.cuda.device_count()):
        raise CannotLoadHere(f"device {name!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type not in ("cpu", "cuda"):
        raise CannotLoadHere(f"device {name!r} is not supported: use auto, cpu, cuda or cuda:N")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the number format of the weights for a setting. ``auto`` is bfloat16.

    int8 means linear layers of 8 bits with a scale for each 64 numbers, and bfloat16 for everything else. Raises
    ModelLoadError for a name that is not supported.
    """
    if name == "auto":
        return torch.bfloat16
    if name not in _DTYPES:
        raise ModelLoadError(f"dtype {name!r} is not supported: use auto, {', '.join(_DTYPES)}")
    if name == "int8" and device.type != "cpu":
        raise CannotLoadHere(f"dtype int8 runs on the CPU alone: use bfloat16 on {device}")
    return _DTYPES[name]


def activation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the format of embeddings and of the KV cache, if the weights have ``dtype``."""
    return torch.bfloat16 if dtype == torch.int8 else dtype
