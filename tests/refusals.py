"""The error with which a call refuses its arguments."""

from typing import Any

import pytest

from headrace.store.errors import HeadraceError


def refusal(call: Any, *arguments: Any, **named: Any) -> tuple[type[HeadraceError], str, str, str | None]:
    """Return the kind, the message, the code and the parameter of the error that a call raises."""
    with pytest.raises(HeadraceError) as caught:
        call(*arguments, **named)
    error = caught.value
    return type(error), error.message, error.code, error.param
