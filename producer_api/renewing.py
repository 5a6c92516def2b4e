"""Reads again what submissions look up in Postgres and what is kept for a moment only, before it is too old to be used.

Where one comes a second, nearly each would find its limits or its model just forgotten, and wait for them. So after a
submission what has half of its time behind it is read anew, when the job's first token is not waited for any more.
Nothing is used for longer than it was. Knows who keeps what; knows nothing of requests.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import structlog
from starlette.concurrency import run_in_threadpool

from producer_api.catalog import Catalog
from producer_api.limit_book import LimitBook
from producer_api.policing import PolicyBook
from store.errors import HeadraceError
from store.keys import Principal

_log = structlog.get_logger("producer_api")

AFTER_S = 0.2

Renew = Callable[[], object]


class Renewing:
    """Renews for one caller at a time; the others' turn comes with their next submission."""

    def __init__(self, catalog: Catalog, limits: LimitBook, policies: PolicyBook) -> None:
        self._catalog = catalog
        self._limits = limits
        self._policies = policies
        self._task: asyncio.Task[None] | None = None

    def soon(self, principal: Principal, model: str) -> None:
        """Read anew, in a moment, what a submission by ``principal`` for ``model`` needs and will soon be forgotten."""
        if self._task is None and (due := self._due(principal, model)):
            self._task = asyncio.create_task(self._renew(due))

    def _due(self, principal: Principal, model: str) -> list[Renew]:
        due: list[Renew] = []
        if self._limits.is_aging(principal):
            due.append(partial(self._limits.renew, principal))
        if self._catalog.is_aging(model):
            due.append(partial(self._catalog.renew, model))
        if self._policies.is_aging(principal.tenant_id):
            due.append(partial(self._policies.renew, principal.tenant_id))
        return due

    async def _renew(self, due: Sequence[Renew]) -> None:
        try:
            await asyncio.sleep(AFTER_S)
            await run_in_threadpool(lambda: [renew() for renew in due])
        except HeadraceError as error:
            # Whoever needs it next asks for himself, and is told.
            _log.debug("not_renewed", reason=error.message)
        finally:
            self._task = None
