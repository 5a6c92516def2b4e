"""A form of errors other than ``errors.ErrorBody``, on the routes of a face that has one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """The ``PART`` of a feature's file ``errors``.

    ``paths``: the beginnings of its URLs. Below them ``is_of`` returns True for a request of the face, by its path and
    headers alone: errors of the middleware have the form too. ``body`` returns the body for the status, the ``error``
    of ``errors.ErrorBody`` and the request's id. ``id_header`` has that id too, on every answer.
    """

    paths: tuple[str, ...]
    is_of: Callable[[Scope], bool]
    body: Callable[[int, Mapping[str, Any], str | None], dict[str, Any]]
    id_header: str
