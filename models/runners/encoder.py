"""What encoders on torch share: reading a model of transformers, and vectors as bytes."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from headrace.models.families.model_folder import weight_files
from headrace.models.families.transformers_probe import silence
from headrace.models.families.transformers_reader import read_with_transformers, refuse_faults
from headrace.models.tensors.precision import resolve_device, resolve_dtype
from headrace.store.settings import Settings


def float32_bytes(vector: torch.Tensor) -> bytes:
    """Return the numbers of a float32 vector, little-endian."""
    numbers = vector.cpu().contiguous().numpy()
    return (numbers if sys.byteorder == "little" else numbers.byteswap()).tobytes()


def finite_bytes(answers: Iterable[torch.Tensor], computed: Iterable[torch.Tensor]) -> list[bytes | None]:
    """Return each answer as ``float32_bytes``, None where it or the model's numbers for it are not finite.

    ``computed`` are the model's own numbers for each answer. An answer can be finite without them: a sigmoid makes 1 of
    an infinite logit.
    """
    pairs = list(zip(answers, computed, strict=True))
    # In one transfer, because each read by the host waits for the device.
    is_finite = torch.stack([answer.isfinite().all() & own.isfinite().all() for answer, own in pairs]).tolist()
    return [float32_bytes(answer) if known else None for (answer, _), known in zip(pairs, is_finite, strict=True)]


def read_model(
    auto: Any, folder: Path, settings: Settings, *, dtype: str, unused: str | None = None
) -> tuple[Any, torch.device]:
    """Return the model that one of transformers' ``Auto…`` classes makes of a folder, on its device, and the device.

    The folder may lack tensors whose names begin with ``unused``. Raises ModelLoadError
    if weights are missing, pickled, or do not fit the configuration.
    """
    weight_files(folder)
    silence()
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    device = resolve_device(settings.device)
    name = settings.dtype if dtype == "auto" else dtype
    number_format = torch.float32 if name == "auto" else resolve_dtype(name, device)
    model, found = read_with_transformers(auto, folder, dtype=number_format)
    if unused is not None:
        found["missing_keys"] = [key for key in found["missing_keys"] if not key.startswith(unused)]
    refuse_faults(folder, found)
    return model.eval().requires_grad_(False).to(device), device
