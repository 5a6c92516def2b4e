"""The limits of each API key and its tenant, read from Postgres and kept for two seconds."""

import time
from collections.abc import Callable, Sequence

from producer_api.caches.ttl_cache import LoadingCache
from store.db.database import Database
from store.settings import Settings
from store.tenants.api_keys import Principal
from store.tenants.tenant_limits import RequestLimits, read_limits

KEEP_S = 2.0
"""The longest time until a changed limit takes effect in every process."""

_MAX_KEYS = 10_000

_TenantAndKey = tuple[str, str]


class LimitCache:
    """Limits by API key. Safe to use from many threads."""

    def __init__(self, settings: Settings, db: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._db = db
        self._kept: LoadingCache[_TenantAndKey, RequestLimits] = LoadingCache(
            self._read, ttl_s=KEEP_S, max_size=_MAX_KEYS, clock=clock
        )

    def held_by(self, principals: Sequence[Principal]) -> list[RequestLimits]:
        """Return the limits of each key. Blocks on Postgres for those that are not cached, with one query for all."""
        found = self._kept.get_all([_key(principal) for principal in principals])
        return [found[_key(principal)] for principal in principals]

    def cached(self, principal: Principal) -> RequestLimits | None:
        """Return the limits of a key if they are cached. Blocks on nothing."""
        return self._kept.fresh(_key(principal))

    def refresh(self) -> None:
        """Read again the limits that were used lately and have half of their time behind them. Blocks on Postgres."""
        self._kept.refresh()

    def forget(self) -> None:
        """Drop everything, because a limit was changed in this process."""
        self._kept.forget()

    def _read(self, keys: Sequence[_TenantAndKey]) -> dict[_TenantAndKey, RequestLimits]:
        found = read_limits(self._db, self._settings, {*keys, *((tenant_id, None) for tenant_id, _ in keys)})
        return {key: RequestLimits(found[(key[0], None)].effective, found[key].effective) for key in keys}


def _key(principal: Principal) -> _TenantAndKey:
    return principal.tenant_id, principal.key_id
