"""What retention adds to the dispatcher: duties that erase the contents whose time is over.

A turn takes one batch of each tenant, so no tenant waits for another's backlog, and one that fails stops no other.
"""

from collections.abc import Callable
from functools import partial

import structlog

from headrace.features.retention import retention
from headrace.features.retention.retention import ErasureCounts
from headrace.store.errors import Unavailable
from headrace.store.keeper import run_parts
from headrace.workers.dispatcher.dispatcher_part import DispatcherContext, DispatcherPart, DispatcherWork
from headrace.workers.dispatcher.row_duties import ROWS, deleting

log = structlog.get_logger(__name__)


class _RetentionWork(DispatcherWork):
    def __init__(self, context: DispatcherContext) -> None:
        self._context = context
        self.duties = (deleting("erase_marked", self._erase_marked), deleting("erase_expired", self._erase_expired))

    def _erase_marked(self) -> bool:
        return self._erase(partial(retention.sweep_marked, self._context.db, ROWS))

    def _erase_expired(self) -> bool:
        db = self._context.db
        by_tenant = retention.read_all(db, retention.defaults(self._context.settings))
        return run_parts(
            (tenant_id, partial(self._erase, partial(retention.sweep, db, tenant_id, effective, ROWS)))
            for tenant_id, effective in by_tenant.items()
        )

    def _erase(self, sweep: Callable[[], ErasureCounts]) -> bool:
        swept = sweep()
        if any(swept.counts.values()):
            log.info("dispatcher.forgotten", **swept.counts)
            try:
                self._context.forget_streams(swept.job_ids)
            except Unavailable:
                log.info("dispatcher.streams_left", num_jobs=len(swept.job_ids))  # they expire in Redis soon
        return swept.more


PART = DispatcherPart(_RetentionWork)
