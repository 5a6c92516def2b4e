"""Values that are read from Postgres and used for a limited time, with refresh-ahead.

Without refresh-ahead, a caller that comes every few seconds would find each entry just expired and wait for Postgres.
So a thread loads the recently used entries again when half of their time is over. No entry is used for longer than its
time to live.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from threading import Lock
from typing import Generic, TypeVar

import structlog
from cachetools import TTLCache

from headrace.store.errors import HeadraceError

_log = structlog.get_logger("headrace.producer_api")

K = TypeVar("K")
V = TypeVar("V")

REFRESH_EVERY_S = 0.25
RECENT_S = 10.0
"""An entry is refreshed until it was not used for this long."""

MAX_RECENT = 16
"""Only so many of the last used entries of a cache are refreshed."""


class TtlCache(Generic[K, V]):
    """Values by key, each used for ``ttl_s`` seconds. Safe to use from many threads; blocks on nothing."""

    def __init__(self, *, ttl_s: float, max_size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl_s = ttl_s
        self._max_size = max_size
        self._clock = clock
        self._entries: dict[K, tuple[V, float]] = {}

    def fresh(self, key: K) -> V | None:
        """Return the value of a key, None if there is none or its time is over."""
        entry = self._entries.get(key)
        return entry[0] if entry is not None and self._clock() < entry[1] else None

    def last(self, key: K) -> V | None:
        """Return the last known value of a key, even if its time is over."""
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def put(self, key: K, value: V) -> None:
        """Keep a value that was read now."""
        if len(self._entries) >= self._max_size:
            self._entries.clear()
        self._entries[key] = value, self._clock() + self._ttl_s

    def forget(self, has_changed: Callable[[V], bool] = lambda _: True) -> None:
        """Drop the values that have changed, or all."""
        for key, (value, _) in list(self._entries.items()):
            if has_changed(value):
                self._entries.pop(key, None)


class LoadingCache(TtlCache[K, V]):
    """A cache that loads missing values. ``load`` blocks and reads the values of several keys at once.

    Two threads may load the same key at the same time.
    """

    def __init__(
        self,
        load: Callable[[Sequence[K]], Mapping[K, V]],
        *,
        ttl_s: float,
        max_size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(ttl_s=ttl_s, max_size=max_size, clock=clock)
        self._load = load
        self._lock = Lock()
        self._recent: TTLCache[K, None] = TTLCache(MAX_RECENT, RECENT_S, timer=clock)

    def get(self, key: K) -> V:
        """Return the value of a key. Raises what ``load`` raises."""
        return self.get_all([key])[key]

    def get_all(self, keys: Collection[K]) -> dict[K, V]:
        """Return the values of the keys; those that are missing are loaded with one call."""
        found = {key: value for key in keys if (value := self.fresh(key)) is not None}
        if missing := [key for key in dict.fromkeys(keys) if key not in found]:
            found |= self._load_now(missing)
        self._note_use(keys)
        return found

    def refresh(self) -> None:
        """Load again the entries that were used lately and have half of their time behind them.

        An entry that cannot be loaded is left as it is: the next caller after its time gets the error.
        """
        now = self._clock()
        with self._lock:
            recent = list(self._recent)
        for key in recent:
            if self._is_aging(key, now):
                try:
                    self._load_now([key])
                except HeadraceError as error:
                    _log.debug("not_renewed", reason=error.message)

    def _is_aging(self, key: K, now: float) -> bool:
        entry = self._entries.get(key)
        return entry is not None and now >= entry[1] - self._ttl_s / 2

    def _load_now(self, keys: Sequence[K]) -> Mapping[K, V]:
        loaded = self._load(keys)
        for key, value in loaded.items():
            self.put(key, value)
        return loaded

    def _note_use(self, keys: Collection[K]) -> None:
        with self._lock:
            self._recent.update(dict.fromkeys(keys))
