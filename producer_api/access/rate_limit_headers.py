"""What a request has spent of its rate limits, told in the headers of its response whatever that turns out to be; and
that no worker serves the job that it made.

A route, or a thread that works for it, notes the headers; the outermost layer, which gave the request its notebook,
puts them into the response: a refusal that comes after the spending has them too.
"""

from collections.abc import Mapping
from contextvars import ContextVar

WARNING_HEADER = "Headrace-Warning"
"""Says that a job was accepted and what keeps it from being run now."""

_NOTED = ("x-ratelimit-", WARNING_HEADER)

_noted: ContextVar[dict[str, str] | None] = ContextVar("spending", default=None)


def begin() -> dict[str, str]:
    """Give this request a notebook, and return it."""
    noted: dict[str, str] = {}
    _noted.set(noted)
    return noted


def note(headers: Mapping[str, str]) -> None:
    """Note headers that the response of the current request shall have."""
    noted = _noted.get()
    if noted is not None:
        noted.update({name: value for name, value in headers.items() if name.startswith(_NOTED)})


def has_spent_request() -> bool:
    """Return whether the current request was counted."""
    return "x-ratelimit-limit-requests" in (_noted.get() or ())
