"""What the response cache adds to the dispatcher.

Jobs whose source has ended without them are ended or computed, and old entries are deleted.
"""

import structlog

from headrace.features.response_cache import entries, sharers
from headrace.store.keeper import Duty
from headrace.store.scheduling.work_probe import PendingWork
from headrace.workers.dispatcher.dispatcher_part import DispatcherContext, DispatcherPart, DispatcherWork
from headrace.workers.dispatcher.job_sweeper import SWEEP_ROWS

PURGE_S = 60.0
MOST_ENTRIES = 100_000
"""Of a tenant; the oldest go."""

log = structlog.get_logger(__name__)


class _CacheWork(DispatcherWork):
    def __init__(self, context: DispatcherContext) -> None:
        self._context = context
        self._is_due = True
        self._settings = settings = context.settings
        self.duties = (
            (Duty("answer_sharers", settings.sweep_s, self._answer, lambda: self._is_due),),
            (Duty("purge_cache", PURGE_S, self._purge, lambda: settings.response_cache != "off"),),
        )

    def notice(self, due: PendingWork) -> None:
        """Learn whether jobs wait for an answer."""
        self._is_due = due.has("sharers")

    def _answer(self) -> bool:
        """End or requeue the jobs that wait for an answer which has come or never will; return if there may be more."""
        swept = sharers.sweep(self._context.db, SWEEP_ROWS)
        if swept.answered or swept.promoted:
            log.info("dispatcher.sharers_swept", answered=len(swept.answered), promoted=len(swept.promoted))
        self._context.nudge(swept.answered)
        return len(swept.answered) >= SWEEP_ROWS

    def _purge(self) -> bool:
        """Delete old entries, in batches; return whether there may be more."""
        settings = self._settings
        return entries.purge(self._context.db, settings.response_cache_ttl_s, MOST_ENTRIES, SWEEP_ROWS) >= SWEEP_ROWS


PART = DispatcherPart(_CacheWork, {"sharers": sharers.IS_DUE})
