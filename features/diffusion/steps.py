"""What a maker of pictures or videos tells after each denoising step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """A step that has ended: number ``done`` of ``total``, from 1. ``state``: from where to go on; None: it cannot.

    ``latents`` are those of a pipeline. ``preview`` returns a picture of them, None if there is none.
    """

    done: int
    total: int
    state: Callable[[], bytes] | None = None
    latents: Any = None
    preview: Callable[[], Any] = lambda: None


OnStep = Callable[[Step], None]
"""What it raises ends the run."""
