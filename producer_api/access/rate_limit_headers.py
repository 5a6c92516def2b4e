"""Headers of a response: how much of the rate limits the request has used, and that no worker serves its job.

A route, or a thread that works for it, adds the headers to a context variable of the request. The outermost middleware
puts them into the response, so an error that is raised after the limits were checked has them too.
"""

from collections.abc import Mapping
from contextvars import ContextVar

WARNING_HEADER = "Headrace-Warning"
"""The job was accepted, and this is why it cannot run now."""

_NOTED = ("x-ratelimit-", WARNING_HEADER)

_noted: ContextVar[dict[str, str] | None] = ContextVar("rate_limit_headers", default=None)


def begin() -> dict[str, str]:
    """Start to collect the headers of this request; return the dict that collects them."""
    noted: dict[str, str] = {}
    _noted.set(noted)
    return noted


def note(headers: Mapping[str, str]) -> None:
    """Add headers to the response of the current request."""
    noted = _noted.get()
    if noted is not None:
        noted.update({name: value for name, value in headers.items() if name.startswith(_NOTED)})


def has_spent_request() -> bool:
    """Return whether the current request was counted in the rate limits."""
    return "x-ratelimit-limit-requests" in (_noted.get() or ())
