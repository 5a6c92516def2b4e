"""A model as transformers itself reads it from a folder: safetensors only, no code of the folder's, nothing fetched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from store.errors import ModelLoadError


def read_original(
    auto: Any, folder: Path, *, dtype: torch.dtype, attention: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """Return the model that a class of transformers' ``Auto…`` makes of a folder, and what it found there.

    ``attention`` is transformers' name of one; without it the architecture's best. Raises ModelLoadError if it cannot
    be read, MemoryError or torch's OutOfMemoryError if it does not fit.
    """
    try:
        original, found = auto.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are told below, by name
            output_loading_info=True,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the library raises whatever its parts do
        raise ModelLoadError(f"{folder} cannot be read by transformers: {error}") from error
    return original, found


def refuse_faults(folder: Path, found: Mapping[str, Any]) -> None:
    """Raise for weights that transformers would make up; those that it has no use for are no fault."""
    if found["missing_keys"]:
        raise ModelLoadError(f"{folder} has no tensor {min(found['missing_keys'])}")
    for name, has, asked in sorted(found["mismatched_keys"]):
        raise ModelLoadError(f"tensor {name} has shape {tuple(has)}, config.json asks for {tuple(asked)}")
    if found["error_msgs"]:
        raise ModelLoadError(f"{folder} cannot be read by transformers: {found['error_msgs']}")
