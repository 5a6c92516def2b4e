"""ListQueries, which may have to look at everything that a tenant has: apart from what submissions and polls use.

They have a few connections and threads of their own, of which a tenant has one at a time, and Postgres gives up on one
that takes long. Each counts as a request.
"""

from collections.abc import Callable
from typing import TypeVar

from anyio import fail_after
from starlette.concurrency import run_in_threadpool

from producer_api.access.rate_limits import RateLimits
from producer_api.server.tenant_threads import TenantThreads
from store.db.database import Database
from store.errors import StatementTimeout, Unavailable
from store.settings import Settings, open_vault
from store.tenants.api_keys import Principal

T = TypeVar("T")

_PLACES = 4
_PATIENCE_S = 5.0
"""How long a list waits for the tenant's lists before it, and for a place."""


class ListQueries:
    """Reads lists."""

    def __init__(self, settings: Settings, rate_limits: RateLimits) -> None:
        self._timeout_s = settings.list_timeout_s
        self._rate_limits = rate_limits
        self._tenant_threads = TenantThreads(_PLACES)
        self._db = Database(
            settings.database_url,
            pool_size=_PLACES,
            application_name="headrace-api-lists",
            vault=open_vault(settings),
            statement_timeout_s=settings.list_timeout_s,
        )

    async def read(self, principal: Principal, read: Callable[[Database], T]) -> T:
        """Return what ``read`` reads. Raises RateLimited, Unavailable (``list_timeout``), and what ``read`` raises."""
        await run_in_threadpool(self._rate_limits.spend_request, principal)
        try:
            # Anyio's, not asyncio's: that would leave a thread behind that has begun, and give its place away.
            with fail_after(_PATIENCE_S):
                return await self._tenant_threads.run(principal.tenant_id, lambda: read(self._db))
        except StatementTimeout:
            raise Unavailable(
                f"the list was not read within {self._timeout_s:g} s: ask for a shorter time or fewer filters"
                " (of jobs, `status` and `created_after` are found without reading all others)",
                code="list_timeout",
            ) from None
        except TimeoutError:
            raise Unavailable(
                f"the list waited {_PATIENCE_S:g} s for others: ask for one list at a time", code="list_timeout"
            ) from None

    def close(self) -> None:
        """Close the connections."""
        self._db.close()
