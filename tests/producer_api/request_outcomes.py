"""The two outcomes of a request, for tests without a server: the fields of its job, or its refusal."""

from collections.abc import Callable
from typing import Any

import pytest

from headrace.store.errors import InvalidRequest

Refused = list[tuple[Any, ...]]
"""The changes to a request, the code and the parameter of its error, and what its message names."""


def fields_set(job: Any) -> dict[str, Any]:
    """The fields of the job that the request has set, as JSON values, without those that are null."""
    made: dict[str, Any] = job.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return made


def refusal_of(make: Callable[..., Any], *given: Any) -> tuple[str, str | None, str]:
    """The code, the parameter and the message of the error that ``make`` raises with these arguments."""
    with pytest.raises(InvalidRequest) as raised:
        make(*given)
    return raised.value.code, raised.value.param, raised.value.message
