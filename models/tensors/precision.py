"""Which device and number format a model runs on. Knows torch's names for them and nothing of models."""

import torch

from store.errors import ModelLoadError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


def resolve_device(name: str) -> torch.device:
    """Return the device for a setting: ``auto`` is CUDA where there is one, else the CPU.

    Raises ModelLoadError for a name that torch does not know or a CUDA device that is not there.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelLoadError(f"device {name!r} is not known: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (not has_cuda or (device.index or 0) >= torch.cuda.device_count()):
        raise ModelLoadError(f"device {name!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type not in ("cpu", "cuda"):
        raise ModelLoadError(f"device {name!r} is not supported: use auto, cpu, cuda or cuda:N")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the number format of the weights for a setting; ``auto`` is bfloat16.

    int8 means 8-bit linear layers with scales for groups of 64 numbers; everything else is bfloat16 then. Raises
    ModelLoadError for a name that is not supported.
    """
    if name == "auto":
        return torch.bfloat16
    if name not in _DTYPES:
        raise ModelLoadError(f"dtype {name!r} is not supported: use auto, {', '.join(_DTYPES)}")
    if name == "int8" and device.type != "cpu":
        raise ModelLoadError(f"dtype int8 runs on the CPU alone: use bfloat16 on {device}")
    return _DTYPES[name]


def activation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the format of embeddings and of the KV cache beside weights of ``dtype``."""
    return torch.bfloat16 if dtype == torch.int8 else dtype
