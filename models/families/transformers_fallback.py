"""The family for every architecture that has no module of its own: the modelling code of transformers, if it can run.

The configuration is probed before any weights are read, and the logits are compared after they are read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.models.families.model_config import ModelConfig
from headrace.store.errors import ModelLoadError

if TYPE_CHECKING:
    import torch

    from headrace.models.families.transformers_model import TransformersModel

NATIVE = None


def read_config(folder: Path, raw: Mapping[str, Any]) -> ModelConfig:
    """Return the configuration that the probe finds. As ``registry.Family.read_config``."""
    from headrace.models.families.transformers_probe import probe  # noqa: PLC0415 - transformers takes seconds to import

    return probe(folder, raw)


def adaptable(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return nothing: adapters are for the families with a module of their own."""
    del config
    return {}


def load(
    folder: Path, config: ModelConfig, *, context: int, dtype: "torch.dtype", device: "torch.device"
) -> "TransformersModel":
    """Return the model, with paged attention and checked logits. As ``registry.Family.load``."""
    del context  # the positions are computed by transformers' code
    import torch  # noqa: PLC0415 - see the module's docstring

    from headrace.models.families.transformers_check import page_checked  # noqa: PLC0415 - transformers takes seconds to import
    from headrace.models.families.transformers_model import read_transformers_model  # noqa: PLC0415 - as above

    if dtype == torch.int8:
        raise ModelLoadError(f"{folder}: int8 is for the Llama family alone; use bfloat16")
    return page_checked(read_transformers_model(folder, config, dtype=dtype, device=device), dtype=dtype, device=device)
