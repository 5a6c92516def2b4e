"""Circuit breakers for receivers of calls: pauses one that fails. Pure bookkeeping with the clock passed in."""

from dataclasses import dataclass

from cachetools import FIFOCache

MAX_REMEMBERED = 10_000


@dataclass(slots=True)
class _FailureRecord:
    num_failures: int = 0
    until: float = 0.0


class ReceiverBreaker:
    """Pauses a receiver that failed to answer several times in a row, or that is overloaded.

    The pause doubles each time. Times are seconds of the caller's clock. Used by one thread at a time.
    """

    def __init__(self, *, threshold: int = 3, first_s: float = 5.0, longest_s: float = 300.0) -> None:
        self._threshold = threshold
        self._first_s = first_s
        self._longest_s = longest_s
        self._failures: FIFOCache[str, _FailureRecord] = FIFOCache(MAX_REMEMBERED)

    def blocked_for_s(self, receiver: str, now: float) -> float:
        """Return the rest of the receiver's pause in seconds; 0 if it may be called."""
        record = self._failures.get(receiver)
        return max(record.until - now, 0.0) if record else 0.0

    def has_paused(self, receiver: str) -> bool:
        """Return True if the receiver was paused since it last answered."""
        record = self._failures.get(receiver)
        return record is not None and record.until > 0

    def blocked(self, now: float) -> frozenset[str]:
        """Return the paused receivers."""
        return frozenset(name for name, record in self._failures.items() if record.until > now)

    def answered(self, receiver: str) -> None:
        """Forget the failures: it answers."""
        self._failures.pop(receiver, None)

    def failed(self, receiver: str, now: float) -> None:
        """Count a call that got no answer."""
        record = self._remember(receiver)
        record.num_failures += 1
        self._pause(record, now)

    def overloaded(self, receiver: str, now: float) -> None:
        """Pause the receiver at its first overload answer."""
        record = self._remember(receiver)
        record.num_failures = max(record.num_failures + 1, self._threshold)
        self._pause(record, now)

    def _pause(self, record: _FailureRecord, now: float) -> None:
        if (excess := record.num_failures - self._threshold) >= 0:
            record.until = now + min(self._first_s * 2 ** min(excess, 16), self._longest_s)

    def asked_to_wait(self, receiver: str, now: float, wait_s: float) -> None:
        """Pause for the time of a Retry-After header, at most for the longest pause."""
        record = self._remember(receiver)
        record.until = max(record.until, now + min(wait_s, self._longest_s))

    def _remember(self, receiver: str) -> _FailureRecord:
        # Stored again, which makes it the newest.
        record = self._failures[receiver] = self._failures.get(receiver) or _FailureRecord()
        return record
