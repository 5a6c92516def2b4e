"""Reads the weights of a model folder: safetensors only, memory-mapped, one tensor at a time."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open

from headrace.models.families.model_folder import weight_files
from headrace.store.errors import ModelLoadError


class Weights:
    """The tensors of a model folder by name. A context manager that keeps the files mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}  # by tensor name; the library has no annotations
        for path in weight_files(folder):
            try:
                opened: Any = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ModelLoadError(f"{path} is not a safetensors file: {error}") from error
            names = opened.keys()
            self._files.update(dict.fromkeys(names, opened))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def get(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a tensor that is backed by the file until it is copied.

        Raises ModelLoadError if it is missing or has another shape than ``shape``.
        """
        if name not in self._files:
            raise ModelLoadError(f"{self.folder} has no tensor {name}")
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise ModelLoadError(f"tensor {name} has shape {tuple(tensor.shape)}, config.json asks for {shape}")
        return tensor
