"""Logs requests that are refused because of their API key. They get a line in the log, but no audit row.

The audit log has a row for each change, and a caller without a key must not be able to make it grow. For the same
reason many refusals are one line a second, with the number of refusals since the last line.
"""

import time
from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_address

import structlog
from starlette.types import Scope

_log = structlog.get_logger("producer_api")

CODES = frozenset({"invalid_api_key", "insufficient_scope", "model_not_allowed"})
LOG_AGAIN_AFTER_S = 1.0


def address_of(scope: Scope) -> str | None:
    """Return the caller's IP address; None if a trusted proxy has passed on something else."""
    return _address(scope["client"][0]) if scope.get("client") else None


@lru_cache(maxsize=1024)
def _address(host: str) -> str | None:
    try:
        return str(ip_address(host))
    except ValueError:
        return None


class RefusalLog:
    """Logs refusals of one process. Used on the event loop alone."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_at = dict.fromkeys(CODES, 0.0)
        self._num_skipped = dict.fromkeys(CODES, 0)

    def note(self, code: str, scope: Scope) -> None:
        """Log a refusal if its code is about the key. The line has the request's id and address."""
        if code not in CODES:
            return
        now = self._clock()
        if now < self._next_at[code]:
            self._num_skipped[code] += 1
            return
        principal = scope["state"].get("principal")
        _log.warning(
            "access_refused",
            code=code,
            method=scope["method"],
            route=getattr(scope.get("route"), "path", None),
            key_id=None if principal is None else principal.key_id,
            address=address_of(scope),
            num_unsaid=self._num_skipped[code],
        )
        self._next_at[code], self._num_skipped[code] = now + LOG_AGAIN_AFTER_S, 0
