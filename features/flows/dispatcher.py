"""What flows add to the dispatcher: approvals end at their time, and flows that nothing takes forward are counted."""

import structlog

from headrace.features.flows.store import approvals
from headrace.features.flows.store.stuck_flows import count_stuck_flows
from headrace.store.keeper import Duty
from headrace.workers.dispatcher.dispatcher_part import DispatcherContext, DispatcherPart, DispatcherWork

log = structlog.get_logger(__name__)

MEASURE_S = 2.0
_ROWS = 500
_LOCK_TIMEOUT_S = 2.0


class _FlowDuties(DispatcherWork):
    def __init__(self, context: DispatcherContext) -> None:
        self._db = context.db
        self._metrics = context.metrics
        settings = context.settings
        self.duties = (
            (Duty("expire_approvals", settings.sweep_s, self._expire_approvals, lock_timeout_s=_LOCK_TIMEOUT_S),),
            (Duty("count_stuck_flows", MEASURE_S, self._count_stuck, lambda: settings.dispatcher_port != 0),),
        )

    def _expire_approvals(self) -> bool:
        """Refuse calls whose approvals have run out of time, in batches; return whether there may be more."""
        expired = approvals.expire_due(self._db, _ROWS)
        if expired:
            log.info("dispatcher.approvals_expired", num_approvals=expired)
        return expired >= _ROWS

    def _count_stuck(self) -> None:
        self._metrics.flows_stuck.set(count_stuck_flows(self._db))


PART = DispatcherPart(_FlowDuties)
