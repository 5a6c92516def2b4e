"""The duties that delete rows of the core, each at the end of its time: old jobs, usage in detail, and so on.

``keep_days`` makes the partitions of the next days, and drops those that are over (``store.jobs.days``).
"""

from collections.abc import Callable, Iterator
from functools import partial

import structlog

from headrace.store.db.database import Database
from headrace.store.jobs import days, sweeps
from headrace.store.keeper import Duty, run_parts
from headrace.store.scheduling import queues
from headrace.store.settings import Settings
from headrace.store.tenants import quotas, usage
from headrace.store.tenants.tenants import list_ids

log = structlog.get_logger(__name__)

PERIOD_S = 60.0
ROWS = 500
REST = 0.5

_LOCK_TIMEOUT_S = 2.0
# Deletes by the thousand may take long, and nothing waits for them.
_BUDGET_S = 300.0
# A statement that takes a partition away lets all that come after it wait while it waits.
_DAY_LOCK_TIMEOUT_S = 0.2


def deleting(name: str, run: Callable[[], bool]) -> tuple[Duty]:
    """Return a duty that deletes a batch of rows at each turn, and rests after it while there may be more."""
    return (Duty(name, PERIOD_S, run, budget_s=_BUDGET_S, lock_timeout_s=_LOCK_TIMEOUT_S, rest=REST),)


def row_duties(db: Database, settings: Settings) -> Iterator[tuple[Duty]]:
    """Return the duties, each a group of its own."""

    def purge_jobs() -> bool:
        num_rows = sweeps.purge(db, settings.record_ttl_s, settings.idempotency_ttl_s, ROWS)
        if num_rows:
            log.info("dispatcher.purged", num_rows=num_rows)
        return num_rows >= ROWS

    def add_up_usage() -> bool:
        return run_parts((tenant_id, partial(add_up, tenant_id)) for tenant_id in list_ids(db))

    def add_up(tenant_id: str) -> bool:
        return usage.roll_up(db, tenant_id, settings.record_ttl_s + usage.DETAIL_S, ROWS) >= ROWS

    def keep_days() -> bool:
        num_made = days.make_ahead(db)
        dropped = [
            name
            for name in (
                days.drop_one(db, settings.record_ttl_s),
                usage.add_up_day(db, settings.record_ttl_s + usage.DETAIL_S),
            )
            if name is not None
        ]
        num_rows = days.clear_rest(db, settings.record_ttl_s, ROWS)
        if num_made or dropped:
            log.info("dispatcher.days_kept", num_made=num_made, dropped=dropped)
        return bool(dropped) or num_rows >= ROWS

    def forget_empty() -> bool:
        queues.forget_empty(db)
        quotas.delete_zero_totals(db)
        return False

    yield deleting("purge_jobs", purge_jobs)
    yield deleting("add_up_usage", add_up_usage)
    yield deleting("forget_empty_queues", forget_empty)
    yield (
        Duty(
            "keep_days",
            PERIOD_S,
            keep_days,
            budget_s=2 * _BUDGET_S,
            lock_timeout_s=_DAY_LOCK_TIMEOUT_S,
            statement_timeout_s=_BUDGET_S,
            rest=REST,
        ),
    )
