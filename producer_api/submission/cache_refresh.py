"""Reads again what submissions look up in Postgres and what is kept for a moment only, before it is too old to be used.

Where one comes every few seconds, each would find its limits and its model just forgotten, and wait for them. So for
some seconds after a submission what has half of its time behind it is read anew. Nothing is used for longer than it
was. Knows who keeps what; knows nothing of requests.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import structlog
from starlette.concurrency import run_in_threadpool

from producer_api.caches.limit_cache import LimitBook
from producer_api.caches.model_catalog import Catalog
from producer_api.submission.input_policy import PolicyBook
from store.errors import HeadraceError
from store.tenants.api_keys import Principal

_log = structlog.get_logger("producer_api")

EVERY_S = 0.25
"""Between two looks at what is aging; a submission's own first token is not waited for any more then."""

LINGER_S = 10.0
MOST = 16
STOP_S = 2.0

Renew = Callable[[], object]


class Renewing:
    """Renews for whoever submitted lately: a caller with a model each, the last ``MOST`` of them."""

    def __init__(self, catalog: Catalog, limits: LimitBook, policies: PolicyBook) -> None:
        self._catalog = catalog
        self._limits = limits
        self._policies = policies
        self._lately: OrderedDict[tuple[str, str], tuple[Principal, float]] = OrderedDict()
        self._task: asyncio.Task[None] | None = None

    def note(self, principal: Principal, model: str) -> None:
        """Keep fresh for a while what a submission by ``principal`` for ``model`` needs."""
        key = principal.key_id, model
        self._lately.pop(key, None)
        self._lately[key] = principal, asyncio.get_running_loop().time() + LINGER_S
        if len(self._lately) > MOST:
            self._lately.popitem(last=False)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Renew nothing any more; what is being read just now is waited for, though not for long."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=STOP_S)

    async def _run(self) -> None:
        try:
            while self._lately:
                await asyncio.sleep(EVERY_S)
                self._forget()
                if due := [renew for key in self._lately for renew in self._due(*key)]:
                    await run_in_threadpool(_renew, due)
        finally:
            self._task = None

    def _forget(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._lately and next(iter(self._lately.values()))[1] <= now:
            self._lately.popitem(last=False)

    def _due(self, key_id: str, model: str) -> list[Renew]:
        principal, _ = self._lately[key_id, model]
        due: list[Renew] = []
        if self._limits.is_aging(principal):
            due.append(partial(self._limits.renew, principal))
        if self._catalog.is_aging(model):
            due.append(partial(self._catalog.renew, model))
        if self._policies.is_aging(principal.tenant_id):
            due.append(partial(self._policies.renew, principal.tenant_id))
        return due


def _renew(due: Sequence[Renew]) -> None:
    for renew in due:
        try:
            renew()
        except HeadraceError as error:
            # Whoever needs it next asks for himself, and is told.
            _log.debug("not_renewed", reason=error.message)
