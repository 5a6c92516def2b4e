"""List queries, which may have to read all rows of a tenant. They must not slow down submissions and polls.

They have a few connections and threads of their own, to a replica if there is one. A tenant runs one list query at a
time, and Postgres cancels a query that takes too long. Each list counts as a request in the rate limits.
"""

from collections.abc import Callable
from typing import TypeVar

from anyio import fail_after
from starlette.concurrency import run_in_threadpool

from headrace.producer_api.access.rate_limits import RateLimits
from headrace.prompts.sandbox.turns import Turns
from headrace.store.db.database import Database
from headrace.store.db.seal_part import open_seal
from headrace.store.errors import StatementTimeout, Unavailable
from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import Principal

T = TypeVar("T")

_NUM_THREADS = 4
_NUM_CONSOLE = 1  # it reads once a second, for all who watch
PATIENCE_S = 5.0
"""How long a list query waits for earlier ones of its tenant, and for a thread."""


class ListQueries:
    """Runs list queries. ``db``: where they read; what it shows may be late."""

    def __init__(self, settings: Settings, rate_limits: RateLimits) -> None:
        self._timeout_s = settings.list_timeout_s
        self._rate_limits = rate_limits
        self._tenant_threads = Turns(_NUM_THREADS, most_of_one=1)
        self.db = Database(
            settings.lists_database_url or settings.database_url,
            pool_size=_NUM_THREADS + _NUM_CONSOLE,
            application_name="headrace-api-lists",
            seal=open_seal(settings),
            statement_timeout_s=settings.list_timeout_s,
        )

    async def read(self, principal: Principal, read: Callable[[Database], T]) -> T:
        """Return the result of ``read``. Raises RateLimited, Unavailable (``list_timeout``) and errors of ``read``."""
        await run_in_threadpool(self._rate_limits.spend_request, principal)
        try:
            # anyio's timeout: asyncio's would leave the running thread behind, and start another one beside it.
            with fail_after(PATIENCE_S):
                return await self._tenant_threads.run(principal.tenant_id, lambda: read(self.db))
        except StatementTimeout:
            raise Unavailable(
                f"the list was not read within {self._timeout_s:g} s: ask for a shorter time or fewer filters"
                " (of jobs, `status` and `created_after` are found without reading all others)",
                code="list_timeout",
            ) from None
        except TimeoutError:
            raise Unavailable(
                f"the list waited {PATIENCE_S:g} s for others: ask for one list at a time", code="list_timeout"
            ) from None

    def close(self) -> None:
        """Close the connections."""
        self.db.close()
