"""What a host remembers of versions: since when one waits for a place or is idle, when it left, and failed starts.

All times are those of a monotonic clock, in seconds."""

from dataclasses import dataclass

_FIRST_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 600.0


@dataclass(slots=True)
class Failure:
    """Failed starts of a version in a row: when it may be started again, and the pause before that."""

    retry_at: float
    pause_s: float


class VersionHistory:
    """The memory of one host, by queue. For one thread."""

    def __init__(self) -> None:
        self._waits_since: dict[str, float] = {}
        self._idle_since: dict[str, float] = {}
        self._left_at: dict[str, float] = {}
        self._failures: dict[str, Failure] = {}

    def wait_s(self, queue: str, oldest_age_s: float, now: float) -> float:
        """Return how long a version with work has waited for a place, not counting the time when it had one."""
        began_at = max(now - oldest_age_s, self._left_at.get(queue, float("-inf")))
        return now - self._waits_since.setdefault(queue, began_at)

    def waits_no_more(self, queue: str, now: float) -> float | None:
        """Forget the wait, because the version serves or has no work; return how long it was."""
        since = self._waits_since.pop(queue, None)
        return None if since is None else now - since

    def idle_s(self, queue: str, now: float, *, is_busy: bool) -> float:
        """Return for how long a version with a place has had no jobs."""
        if is_busy:
            self._idle_since[queue] = now
        return now - self._idle_since.setdefault(queue, now)

    def left(self, queue: str, now: float) -> None:
        """Note that the version has no place any more."""
        self._left_at[queue] = now
        self._idle_since.pop(queue, None)

    def failed(self, queue: str, now: float) -> float:
        """Note a worker that ended unasked; return the pause until it may be started again, longer each time."""
        before = self._failures.get(queue)
        pause_s = _FIRST_PAUSE_S if before is None else min(_LONGEST_PAUSE_S, 2 * before.pause_s)
        self._failures[queue] = Failure(now + pause_s, pause_s)
        # It begins to wait anew: a version that cannot start must not displace others as overdue.
        self._waits_since.pop(queue, None)
        return pause_s

    def is_steady(self, queue: str) -> None:
        """Forget the failed starts, because the version has served for long enough."""
        self._failures.pop(queue, None)

    def obstacle(self, queue: str, now: float) -> str | None:
        """Return why the version may not be started yet. Every tenant may read it, so it does not quote the worker."""
        failure = self._failures.get(queue)
        if failure is None or now >= failure.retry_at:
            return None
        return f"its worker could not be started; it is tried again in {failure.retry_at - now:.0f} s"
