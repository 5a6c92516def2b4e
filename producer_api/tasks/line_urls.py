"""URLs with a name in them that a line of a batch may have, beside those of ``TaskRoutes``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LineUrls:
    """The ``PART`` of a feature's file ``lines``.

    ``form``: the URL as callers read it. ``reader_of``: the reader of a body for a URL; None for another URL.
    """

    form: str
    reader_of: Callable[[str], Callable[[Mapping[str, Any]], Any] | None]
