"""The error with which a call refuses its arguments."""

from typing import Any

import pytest

from headrace.store.errors import HeadraceError


class Naming:
    """Equal to each text that names all of these things, in whatever words."""

    def __init__(self, *things: str) -> None:
        self.things = things

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and all(thing in other for thing in self.things)

    def __repr__(self) -> str:
        return f"Naming{self.things!r}"


def refusal(call: Any, *arguments: Any, **named: Any) -> tuple[type[HeadraceError], str, str, str | None]:
    """Return the kind, the message, the code and the parameter of the error that a call raises."""
    with pytest.raises(HeadraceError) as caught:
        call(*arguments, **named)
    error = caught.value
    return type(error), error.message, error.code, error.param
