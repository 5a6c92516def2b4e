"""What everybody but the model's own code needs to know of an architecture: sizes, spans, vocabulary.

Chooses between the Llama family's fast path and transformers' own modelling code, and imports neither torch nor
transformers for the first.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from models.families.config import OtherArchitecture, parse_config
from store.errors import ModelLoadError


class Geometry(Protocol):
    """The sizes of a causal model. ``windows`` holds each layer's attention span in tokens, None for all of them."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_window(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def num_kv_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def windows(self) -> tuple[int | None, ...]: ...


def read_geometry(folder: Path, raw: Mapping[str, Any]) -> Geometry:
    """Return the geometry of the model whose ``config.json`` is ``raw``: a LlamaConfig where the fast path covers it.

    Raises ModelLoadError, with one sentence, if it cannot run here.
    """
    try:
        return parse_config(raw)
    except OtherArchitecture as error:
        try:
            from models.families.probe import probe  # noqa: PLC0415 - the fast path needs no transformers
        except ImportError as missing:
            raise ModelLoadError(f"{error}; another needs the package {missing.name}") from error
        return probe(folder, raw)
