"""Whoever was refused for what its key is or lacks: a line in the log, and a count in the metrics, but no audit row.

A row is for what was changed, and somebody without a key must not be able to make the audit log grow. For the same
reason a flood of refusals is a line a second, which says how many it stands for.
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
    """Return the caller's address; None for what is none, which a trusted proxy may have passed on from its client."""
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
        self._unsaid = dict.fromkeys(CODES, 0)

    def note(self, code: str, scope: Scope) -> None:
        """Log a refusal with this code, if it is one of a key; the request's id and address go with it."""
        if code not in CODES:
            return
        now = self._clock()
        if now < self._next_at[code]:
            self._unsaid[code] += 1
            return
        principal = scope["state"].get("principal")
        _log.warning(
            "access_refused",
            code=code,
            method=scope["method"],
            route=getattr(scope.get("route"), "path", None),
            key_id=None if principal is None else principal.key_id,
            address=address_of(scope),
            num_unsaid=self._unsaid[code],
        )
        self._next_at[code], self._unsaid[code] = now + LOG_AGAIN_AFTER_S, 0
