"""Reads a model folder with transformers: safetensors only, no code from the folder, no downloads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from headrace.store.errors import ModelLoadError


def read_with_transformers(
    auto: Any, folder: Path, *, dtype: torch.dtype, attention: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """Return the model that an ``Auto…`` class of transformers reads, and the loading report of transformers.

    ``attention`` is the name of an attention implementation; None chooses the best of the architecture. Raises
    ModelLoadError if the model cannot be read, MemoryError or torch's OutOfMemoryError if it does not fit.
    """
    try:
        original, found = auto.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # refuse_faults names them
            output_loading_info=True,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the library raises errors of any type
        raise ModelLoadError(f"{folder} cannot be read by transformers: {error}") from error
    return original, found


def refuse_faults(folder: Path, found: Mapping[str, Any]) -> None:
    """Raise ModelLoadError for weights that transformers would initialise at random. Unused weights are allowed."""
    if found["missing_keys"]:
        raise ModelLoadError(f"{folder} has no tensor {min(found['missing_keys'])}")
    for name, has, asked in sorted(found["mismatched_keys"]):
        raise ModelLoadError(f"tensor {name} has shape {tuple(has)}, config.json asks for {tuple(asked)}")
    if found["error_msgs"]:
        raise ModelLoadError(f"{folder} cannot be read by transformers: {found['error_msgs']}")
