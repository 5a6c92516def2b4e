"""The registry of model families: which module computes which ``model_type`` of ``config.json``.

A new family is one module with the functions of ``Family``, and its lines in ``FAMILIES``. Modules are imported when a
model needs them, so a process that only reads configurations of the Llama family imports neither torch nor
transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from headrace.models.families.model_config import ModelConfig, UnsupportedArchitecture
from headrace.store.errors import CannotLoadHere

if TYPE_CHECKING:
    import torch

    from headrace.models.families.model import CausalModel

FAMILIES: Mapping[str, str] = {
    "llama": "headrace.models.families.llama",
    "mistral": "headrace.models.families.llama",
    "qwen2": "headrace.models.families.llama",
    "qwen3": "headrace.models.families.llama",
}
"""The module of the family of each ``model_type``."""

FALLBACK = "headrace.models.families.transformers_fallback"
"""The module for every other architecture, and for options that a family does not support."""


class Family(Protocol):
    """A module with these names is a model family."""

    NATIVE: str | None
    """The module that loads this family for the CPU kernels (``models.native.choose.NativeFamily``), or None."""

    def read_config(self, folder: Path, raw: Mapping[str, Any]) -> ModelConfig:
        """Return the configuration of a model folder, whose ``config.json`` is ``raw``.

        Raises UnsupportedArchitecture if the fallback may run the model, and ModelLoadError if nothing here can.
        """
        ...

    def adaptable(self, config: Any) -> Mapping[str, tuple[int, int]]:
        """Return the linear layers of a decoder layer that a LoRA adapter may change: the name of the module in its
        layer, and its numbers of inputs and outputs. Empty: this family runs no adapters.
        """
        ...

    def load(
        self, folder: Path, config: Any, *, context: int, dtype: "torch.dtype", device: "torch.device"
    ) -> "CausalModel":
        """Read the weights of a model and return it. ``config`` is what ``read_config`` returned.

        ``context`` is the highest number of positions that a request will use. Raises ModelLoadError.
        """
        ...


@dataclass(frozen=True, slots=True)
class Architecture:
    """The family of a model folder, and the model's configuration."""

    family: Family
    config: ModelConfig


def read_architecture(folder: Path, raw: Mapping[str, Any]) -> Architecture:
    """Return the family and the configuration of a model folder, whose ``config.json`` is ``raw``.

    Raises ModelLoadError, with one sentence, if the model cannot run here.
    """
    try:
        return _read_with(family_module(raw.get("model_type")), folder, raw)
    except UnsupportedArchitecture as error:
        try:
            return _read_with(FALLBACK, folder, raw)
        except ImportError as missing:
            raise CannotLoadHere(f"{error}; another needs the package {missing.name}") from error


def family_module(model_type: object) -> str:
    """Return the module of a ``model_type``. Raises UnsupportedArchitecture if it has no family of its own."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedArchitecture(f"model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def _read_with(module: str, folder: Path, raw: Mapping[str, Any]) -> Architecture:
    family = cast(Family, import_module(module))
    return Architecture(family, family.read_config(folder, raw))
