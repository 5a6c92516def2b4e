"""Limits that are kept exactly however many processes accept jobs: jobs at once, queued tokens, a month's cost.

What is used is read from counts that triggers keep (``store.schema.limit_tables``), in the transaction that adds to it.
Near a limit that is done under a lock of the tenant's, held to the commit, so nobody counts while another adds. Far
from it nobody locks: a process that stops in the middle would otherwise hold up the tenant's requests everywhere.

    used = what is open or was spent, as committed     ┐
    wave = what this transaction has let in before     ├─ used + wave + wanted <= limit, of the key and of the tenant
    wanted                                             ┘

A month's cost counts what was spent and what every open job can still cost by the prices of now: its prompt and its
``max_tokens``. So it is overshot only by a price that is raised while jobs are open, or a limit that is lowered.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection, text

from store.db.database import Database
from store.errors import HeadraceError, InvalidRequest, QuotaExceeded, RateLimited
from store.tenants.tenant_limits import Held, Limits

NEAR_JOBS: Final = 4096
NEAR_TOKENS: Final = 16_000_000
"""Where less than this is left the lock is taken: what sixteen processes can have under way at once."""

_RETRY_S: Final = 2.0

FOLD_PAST: Final = 1000
FOLD_MOST: Final = 10_000
_MOST_FOLDS: Final = 20


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant, or a key, uses: open jobs, tokens of the queued ones, and money."""

    jobs: int = 0
    queued_tokens: int = 0
    reserved: Decimal = Decimal(0)
    spent: Decimal = Decimal(0)

    @property
    def cost(self) -> Decimal:
        """What was spent this month and what is open may still cost."""
        return self.spent + self.reserved

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.jobs + other.jobs,
            self.queued_tokens + other.queued_tokens,
            self.reserved + other.reserved,
            self.spent + other.spent,
        )


@dataclass(frozen=True, slots=True)
class Want:
    """A job that wants in."""

    job_id: str
    tenant_id: str
    key_id: str
    queue: str
    input_tokens: int
    cost_tokens: int
    held: Held


Whose = tuple[str, str]
"""A tenant and one of its keys, or no key for all of it."""


# Summed before it is priced: there may be many changes of one queue.
_USED = text("""
WITH counted AS (
    SELECT tenant_id, api_key_id, queue, jobs, queued_tokens, input_tokens, output_tokens FROM open_totals
    WHERE tenant_id = ANY(CAST(:tenants AS varchar[]))
    UNION ALL
    SELECT tenant_id, api_key_id, queue, jobs, queued_tokens, input_tokens, output_tokens FROM open_changes
    WHERE tenant_id = ANY(CAST(:tenants AS varchar[]))
), open AS (
    SELECT tenant_id, api_key_id, queue, sum(jobs) AS jobs, sum(queued_tokens) AS queued_tokens,
        sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens
    FROM counted GROUP BY tenant_id, api_key_id, queue
), spent AS (
    SELECT tenant_id, api_key_id, month, cost FROM spend_totals WHERE tenant_id = ANY(CAST(:tenants AS varchar[]))
    UNION ALL
    SELECT tenant_id, api_key_id, month, cost FROM spend_changes WHERE tenant_id = ANY(CAST(:tenants AS varchar[]))
)
SELECT tenant_id, api_key_id, CAST(sum(jobs) AS bigint) AS jobs, CAST(sum(queued_tokens) AS bigint) AS queued_tokens,
    sum(reserved) AS reserved, sum(cost) AS spent
FROM (
    SELECT tenant_id, api_key_id, jobs, queued_tokens, 0 AS cost, COALESCE(
        (open.input_tokens * GREATEST(price.input, price.cached_input) + open.output_tokens * price.output) / 1000000,
        0) AS reserved
    FROM open LEFT JOIN model_prices AS price ON price.model || '@' || price.version = open.queue
    UNION ALL
    SELECT tenant_id, api_key_id, 0, 0, cost, 0 FROM spent
    WHERE month = CAST(date_trunc('month', now() AT TIME ZONE 'UTC') AS date)
) AS used
GROUP BY tenant_id, api_key_id
""")


def read_usage(connection: Connection, tenants: Sequence[str]) -> dict[Whose, Usage]:
    """Return what each tenant and each of its keys uses; whoever uses nothing is absent."""
    found: dict[Whose, Usage] = {}
    for row in connection.execute(_USED, {"tenants": list(tenants)}):
        usage = Usage(row.jobs, row.queued_tokens, Decimal(row.reserved), Decimal(row.spent))
        for whose in {(row.tenant_id, row.api_key_id), (row.tenant_id, "")}:
            found[whose] = found.get(whose, Usage()) + usage
    return found


def usage_of(db: Database, tenant_id: str, key_id: str = "") -> Usage:
    """Return what a tenant, or one key of it, uses now."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        return read_usage(connection, [tenant_id]).get((tenant_id, key_id), Usage())


_LOCK = text("""
SELECT pg_advisory_xact_lock(hashtextextended('headrace.quota:' || tenant, 0))
FROM (SELECT tenant FROM unnest(CAST(:tenants AS text[])) AS tenant ORDER BY tenant) AS ordered
""")

_PRICES = text("""
SELECT model || '@' || version AS queue, GREATEST(input, cached_input) AS input, output FROM model_prices
WHERE model || '@' || version = ANY(CAST(:queues AS text[]))
""")


def refusals(connection: Connection, wants: Sequence[Want]) -> dict[str, HeadraceError]:
    """Return the errors of those jobs that do not fit, by id, in the transaction in which the others are stored.

    A job's queue is full of its owner's (``queue_full``), it has too many at once (``rate_limit_exceeded``), or the
    month's money is spent (QuotaExceeded).
    """
    tenants = sorted({want.tenant_id for want in wants})
    if not tenants:
        return {}
    used = read_usage(connection, tenants)
    near = sorted({want.tenant_id for want in wants if _is_near(want, used)})
    if near:
        connection.execute(_LOCK, {"tenants": near})
        used = {whose: usage for whose, usage in used.items() if whose[0] not in near} | read_usage(connection, near)
    is_priced = any(limits.monthly_cost is not None for want in wants for _, limits in _limits_of(want))
    prices = _prices(connection, wants) if is_priced else {}
    return _decide(wants, used, prices)


def _decide(
    wants: Sequence[Want], used: dict[Whose, Usage], prices: Mapping[str, tuple[Decimal, Decimal]]
) -> dict[str, HeadraceError]:
    refused: dict[str, HeadraceError] = {}
    for want in wants:
        more = Usage(1, max(want.cost_tokens, want.input_tokens), _cost(want, prices))
        for whose, limits in _limits_of(want):
            error = over(limits, used.get(whose, Usage()), more, "this key" if whose[1] else "your organization")
            if error is not None:
                refused[want.job_id] = error
                break
        else:
            for whose, _ in _limits_of(want):
                used[whose] = used.get(whose, Usage()) + more
    return refused


def over(limits: Limits, used: Usage, more: Usage, whose: str) -> HeadraceError | None:
    """Return why ``more`` does not fit, or None if it does."""
    if limits.concurrent_jobs is not None and used.jobs + more.jobs > limits.concurrent_jobs:
        return RateLimited(
            f"{whose} has {used.jobs} jobs queued or running, and {limits.concurrent_jobs} is the limit of jobs at"
            " once: try again when some have ended",
            retry_after_s=_RETRY_S,
        )
    if limits.queued_tokens is not None and more.queued_tokens > limits.queued_tokens:
        return InvalidRequest(
            f"prompt and max_tokens are {more.queued_tokens} tokens together, and {whose} may have"
            f" {limits.queued_tokens} queued: ask for fewer",
            param="sampling.max_tokens",
        )
    if limits.queued_tokens is not None and used.queued_tokens + more.queued_tokens > limits.queued_tokens:
        return RateLimited(
            f"{whose} has {used.queued_tokens} tokens queued, this job has {more.queued_tokens}, and"
            f" {limits.queued_tokens} is the limit: try again when some have been started",
            retry_after_s=_RETRY_S,
            code="queue_full",
        )
    if limits.monthly_cost is not None and used.cost + more.cost > limits.monthly_cost:
        return QuotaExceeded(_spent(limits.monthly_cost, used, more, whose))
    return None


def _spent(limit: Decimal, used: Usage, more: Usage, whose: str) -> str:
    reset = month_end(datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return (
        f"{whose} has spent {_money(used.spent)} of {_money(limit)} this month, its open jobs may cost"
        f" {_money(used.reserved)} more and this one {_money(more.cost)}: ask for fewer tokens, wait for {reset}, when"
        " the next month begins, or have the limit raised"
    )


def _money(amount: Decimal) -> str:
    return f"{amount:.6f}".rstrip("0").rstrip(".")


def month_end(now: datetime) -> datetime:
    """Return when the month of ``now``, a time in UTC, is over."""
    year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)
    return datetime(year, month, 1, tzinfo=UTC)


def _limits_of(want: Want) -> Iterator[tuple[Whose, Limits]]:
    yield (want.tenant_id, want.key_id), want.held.key
    yield (want.tenant_id, ""), want.held.tenant


def _is_near(want: Want, used: Mapping[Whose, Usage]) -> bool:
    for whose, limits in _limits_of(want):
        found = used.get(whose, Usage())
        if limits.monthly_cost is not None:
            return True
        if limits.concurrent_jobs is not None and limits.concurrent_jobs - found.jobs < NEAR_JOBS:
            return True
        if limits.queued_tokens is not None and limits.queued_tokens - found.queued_tokens < NEAR_TOKENS:
            return True
    return False


def _prices(connection: Connection, wants: Sequence[Want]) -> dict[str, tuple[Decimal, Decimal]]:
    rows = connection.execute(_PRICES, {"queues": sorted({want.queue for want in wants})})
    return {row.queue: (Decimal(row.input), Decimal(row.output)) for row in rows}


def _cost(want: Want, prices: Mapping[str, tuple[Decimal, Decimal]]) -> Decimal:
    """Return the most that the job can cost."""
    of_input, of_output = prices.get(want.queue, (Decimal(0), Decimal(0)))
    num_output = max(want.cost_tokens - want.input_tokens, 0)
    return (want.input_tokens * of_input + num_output * of_output) / 1_000_000


_FOLD = text("SELECT headrace_fold_limits(:past, :most)")

_FORGET_EMPTY = text("DELETE FROM open_totals WHERE jobs = 0 AND queued_tokens = 0 AND input_tokens = 0")


def fold(db: Database, most: int = FOLD_MOST, *, past: int = 0) -> int:
    """Add what changed to the totals, if more than ``past`` changes wait; return how many that were, at most ``most``.

    Safe to run twice and by two at once: a change is added by the statement that deletes it.
    """
    with db.autocommit() as connection:
        return int(connection.execute(_FOLD, {"past": past, "most": most}).scalar_one())


def fold_for_the_dispatcher(db: Database) -> None:
    """Do what no dispatcher does now: while one runs, so many changes never wait.

    Each accepting process calls it every few seconds, for it is they who read what waits.
    """
    for _ in range(_MOST_FOLDS):
        if fold(db, past=FOLD_PAST) < FOLD_MOST:
            return


def forget_empty(db: Database) -> int:
    """Delete the totals that came to nothing; return how many."""
    with db.autocommit() as connection:
        return connection.execute(_FORGET_EMPTY).rowcount
