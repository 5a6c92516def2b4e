"""A model folder's weights: safetensors only, memory-mapped, one tensor at a time.

Knows names and shapes, not what the tensors mean.
"""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open

from models.families.model_folder import weight_files
from store.errors import ModelLoadError


class Weights:
    """The tensors of a model folder by name. A context manager: the files stay mapped while it is open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._homes: dict[str, Any] = {}  # the library has no annotations
        for path in weight_files(folder):
            try:
                opened: Any = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ModelLoadError(f"{path} is not a safetensors file: {error}") from error
            names = opened.keys()
            self._homes.update(dict.fromkeys(names, opened))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._homes.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._homes

    def get(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a tensor, backed by the file's pages until it is copied.

        Raises ModelLoadError if it is missing or its shape is not the one that the configuration asks for.
        """
        if name not in self._homes:
            raise ModelLoadError(f"{self.folder} has no tensor {name}")
        tensor: torch.Tensor = self._homes[name].get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise ModelLoadError(f"tensor {name} has shape {tuple(tensor.shape)}, config.json asks for {shape}")
        return tensor
