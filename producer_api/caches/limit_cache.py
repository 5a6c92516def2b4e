"""The limits that hold for each key, read from Postgres and remembered for a moment."""

import time
from collections.abc import Callable, Iterable

from store.db.database import Database
from store.settings import Settings
from store.tenants.api_keys import Principal
from store.tenants.tenant_limits import Held, read_standings

KEEP_S = 2.0
"""How long a change of a limit may take to be felt."""

_MOST_KEPT = 10_000


class LimitBook:
    """Limits by key. Safe to use from many threads: at worst one reads what another has just read."""

    def __init__(self, settings: Settings, db: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._db = db
        self._clock = clock
        self._kept: dict[str, tuple[Held, float]] = {}

    def held_by(self, principals: Iterable[Principal]) -> list[Held]:
        """Return the limits of each. Blocks on Postgres for those that are not known, all with one question."""
        asked = list(principals)
        now = self._clock()
        kept = {one.key_id: held for one in asked if (held := self._look(one.key_id, now)) is not None}
        if missing := [one for one in asked if one.key_id not in kept]:
            kept |= self._read(missing, now)
        return [kept[one.key_id] for one in asked]

    def known(self, principal: Principal) -> Held | None:
        """Return the limits of a key if they are remembered. Blocks on nothing."""
        return self._look(principal.key_id, self._clock())

    def is_aging(self, principal: Principal) -> bool:
        """True if the limits of this key are known, and half of the time is over for which they are kept."""
        found = self._kept.get(principal.key_id)
        return found is not None and self._clock() >= found[1] - KEEP_S / 2

    def renew(self, principal: Principal) -> None:
        """Read the limits of a key again, so that nobody need wait for them."""
        self._read([principal], self._clock())

    def _look(self, key_id: str, now: float) -> Held | None:
        found = self._kept.get(key_id)
        return found[0] if found is not None and now < found[1] else None

    def _read(self, missing: Iterable[Principal], now: float) -> dict[str, Held]:
        wanted = {one.key_id: one.tenant_id for one in missing}
        tenants = {(tenant, None) for tenant in wanted.values()}
        found = read_standings(self._db, self._settings, {*tenants, *((tenant, key) for key, tenant in wanted.items())})
        read = {key: Held(found[(tenant, None)].holds, found[(tenant, key)].holds) for key, tenant in wanted.items()}
        if len(self._kept) > _MOST_KEPT:
            self._kept.clear()
        self._kept |= {key: (held, now + KEEP_S) for key, held in read.items()}
        return read

    def forget(self) -> None:
        """Read everything anew: a limit was changed here."""
        self._kept.clear()
