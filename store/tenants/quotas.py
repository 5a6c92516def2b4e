"""Exact limits across all API processes: concurrent jobs, queued tokens, and the cost of a month.

Usage is read from counters that triggers keep (``store.schema.limit_tables``), in the transaction that adds jobs. Near
a limit the transaction takes a lock of the tenant until its commit, so that no other transaction adds jobs meanwhile.
Far from a limit no lock is taken, because a process that stops would block all requests of the tenant.

    used      open jobs and spent money, committed      ┐
    accepted  jobs accepted in this transaction         ├─ used + accepted + wanted <= limit, of key and tenant
    wanted    this job                                  ┘

The cost of a month is the spent money, and the most that each open job can still cost by current prices: its prompt and
its ``max_tokens``. It exceeds a limit only if a price is raised, or the limit lowered, while jobs are open.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection, text

from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError, InvalidRequest, QuotaExceeded, RateLimited
from headrace.store.schema.batch_states import BatchStatus
from headrace.store.tenants.tenant_limits import Limits, RequestLimits

NEAR_JOBS: Final = 4096
NEAR_TOKENS: Final = 16_000_000
"""The lock is taken if less than this is left. Sixteen processes cannot add more than this at the same time."""

_RETRY_S: Final = 2.0

FOLD_PAST: Final = 1000
FOLD_MOST: Final = 10_000
_MOST_FOLDS: Final = 20


_LIVE_STATES = ", ".join(repr(str(status)) for status in BatchStatus if not status.is_terminal)
NUM_LIVE_BATCHES: Final = text(f"""
SELECT count(*) AS of_tenant, count(*) FILTER (WHERE api_key_id = :api_key_id) AS of_key FROM batches
WHERE tenant_id = :tenant_id AND status IN ({_LIVE_STATES})
""")
"""The batches of a tenant and of one key that have not ended."""


@dataclass(frozen=True, slots=True)
class QuotaUsage:
    """Usage of a tenant or a key: open jobs, tokens of queued jobs, money reserved by open jobs, money spent."""

    jobs: int = 0
    queued_tokens: int = 0
    reserved: Decimal = Decimal(0)
    spent: Decimal = Decimal(0)

    @property
    def cost(self) -> Decimal:
        """Money spent this month, and the most that open jobs can still cost."""
        return self.spent + self.reserved

    def __add__(self, other: "QuotaUsage") -> "QuotaUsage":
        return QuotaUsage(
            self.jobs + other.jobs,
            self.queued_tokens + other.queued_tokens,
            self.reserved + other.reserved,
            self.spent + other.spent,
        )


@dataclass(frozen=True, slots=True)
class QuotaPart:
    """What a version computes for a job: ``queue`` is the version's."""

    queue: str
    input_tokens: int
    cost_tokens: int


@dataclass(frozen=True, slots=True)
class QuotaRequest:
    """A new job, as far as limits are concerned. A job of several steps has as many ``parts``."""

    job_id: str
    tenant_id: str
    key_id: str
    parts: tuple[QuotaPart, ...]
    limits: RequestLimits

    @property
    def num_tokens(self) -> int:
        """Prompts and ``max_tokens`` of all parts."""
        return sum(max(part.cost_tokens, part.input_tokens) for part in self.parts)


QuotaOwner = tuple[str, str]
"""A tenant id and a key id; the key "": the tenant as a whole."""


# Usage of tenants and their keys. Changes are summed before they are priced, because a queue may have many.
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


# Locks the tenants' quotas for the transaction, in a fixed order against deadlocks.
_LOCK = text("""
SELECT pg_advisory_xact_lock(hashtextextended('headrace.quota:' || tenant, 0))
FROM (SELECT tenant FROM unnest(CAST(:tenants AS text[])) AS tenant ORDER BY tenant) AS ordered
""")

# Prices of queues; the prompt at its higher price.
_PRICES = text("""
SELECT model || '@' || version AS queue, GREATEST(input, cached_input) AS input, output FROM model_prices
WHERE model || '@' || version = ANY(CAST(:queues AS text[]))
""")

# Adds changes to the totals, if enough of them wait.
_FOLD = text("SELECT headrace_fold_limits(:past, :most)")

# Deletes totals that are zero.
_DELETE_ZERO = text("DELETE FROM open_totals WHERE jobs = 0 AND queued_tokens = 0 AND input_tokens = 0")


def read_usage(connection: Connection, tenants: Sequence[str]) -> dict[QuotaOwner, QuotaUsage]:
    """Return the usage of each tenant and of each of its keys. Without usage there is no entry."""
    found: dict[QuotaOwner, QuotaUsage] = {}
    for row in connection.execute(_USED, {"tenants": list(tenants)}):
        usage = QuotaUsage(row.jobs, row.queued_tokens, Decimal(row.reserved), Decimal(row.spent))
        for owner in {(row.tenant_id, row.api_key_id), (row.tenant_id, "")}:
            found[owner] = found.get(owner, QuotaUsage()) + usage
    return found


def usage_of(db: Database, tenant_id: str, key_id: str = "") -> QuotaUsage:
    """Return the current usage of a tenant, or of one of its keys."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        return read_usage(connection, [tenant_id]).get((tenant_id, key_id), QuotaUsage())


def refusals(connection: Connection, wants: Sequence[QuotaRequest]) -> dict[str, HeadraceError]:
    """Return errors by job id for the jobs over a limit. Call it in the transaction that stores the others.

    Errors: too many queued tokens (``queue_full``), too many concurrent jobs (``rate_limit_exceeded``), the cost of
    the month (QuotaExceeded).
    """
    tenants = sorted({want.tenant_id for want in wants})
    if not tenants:
        return {}
    used = read_usage(connection, tenants)
    near = sorted({want.tenant_id for want in wants if _is_near(want, used)})
    if near:
        connection.execute(_LOCK, {"tenants": near})
        used = {owner: usage for owner, usage in used.items() if owner[0] not in near} | read_usage(connection, near)
    is_priced = any(limits.monthly_cost is not None for want in wants for _, limits in _limits_of(want))
    prices = _prices(connection, wants) if is_priced else {}
    return _decide(wants, used, prices)


def _decide(
    wants: Sequence[QuotaRequest], used: dict[QuotaOwner, QuotaUsage], prices: Mapping[str, tuple[Decimal, Decimal]]
) -> dict[str, HeadraceError]:
    refused: dict[str, HeadraceError] = {}
    for want in wants:
        more = QuotaUsage(1, want.num_tokens, _cost(want, prices))
        for owner, limits in _limits_of(want):
            error = check_quota(
                limits, used.get(owner, QuotaUsage()), more, "this key" if owner[1] else "your organization"
            )
            if error is not None:
                refused[want.job_id] = error
                break
        else:
            for owner, _ in _limits_of(want):
                used[owner] = used.get(owner, QuotaUsage()) + more
    return refused


def check_quota(limits: Limits, used: QuotaUsage, more: QuotaUsage, owner: str) -> HeadraceError | None:
    """Return the error if ``used`` and ``more`` exceed a limit, else None. ``owner`` is for the message."""
    if limits.concurrent_jobs is not None and used.jobs + more.jobs > limits.concurrent_jobs:
        return RateLimited(
            f"{owner} has {used.jobs} jobs queued or running, and {limits.concurrent_jobs} is the limit of jobs at"
            " once: try again when some have ended",
            retry_after_s=_RETRY_S,
        )
    if limits.queued_tokens is not None and more.queued_tokens > limits.queued_tokens:
        return InvalidRequest(
            f"prompt and max_tokens are {more.queued_tokens} tokens together, and {owner} may have"
            f" {limits.queued_tokens} queued: ask for fewer",
            param="sampling.max_tokens",
        )
    if limits.queued_tokens is not None and used.queued_tokens + more.queued_tokens > limits.queued_tokens:
        return RateLimited(
            f"{owner} has {used.queued_tokens} tokens queued, this job has {more.queued_tokens}, and"
            f" {limits.queued_tokens} is the limit: try again when some have been started",
            retry_after_s=_RETRY_S,
            code="queue_full",
        )
    if limits.monthly_cost is not None and used.cost + more.cost > limits.monthly_cost:
        return QuotaExceeded(_spent(limits.monthly_cost, used, more, owner))
    return None


def _spent(limit: Decimal, used: QuotaUsage, more: QuotaUsage, owner: str) -> str:
    reset = month_end(datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return (
        f"{owner} has spent {_money(used.spent)} of {_money(limit)} this month, its open jobs may cost"
        f" {_money(used.reserved)} more and this one {_money(more.cost)}: ask for fewer tokens, wait for {reset}, when"
        " the next month begins, or have the limit raised"
    )


def _money(amount: Decimal) -> str:
    return f"{amount:.6f}".rstrip("0").rstrip(".")


def month_end(now: datetime) -> datetime:
    """Return the end of the month of ``now``, in UTC."""
    year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)
    return datetime(year, month, 1, tzinfo=UTC)


def _limits_of(want: QuotaRequest) -> Iterator[tuple[QuotaOwner, Limits]]:
    yield (want.tenant_id, want.key_id), want.limits.key
    yield (want.tenant_id, ""), want.limits.tenant


def _is_near(want: QuotaRequest, used: Mapping[QuotaOwner, QuotaUsage]) -> bool:
    for owner, limits in _limits_of(want):
        found = used.get(owner, QuotaUsage())
        if limits.monthly_cost is not None:
            return True
        if limits.concurrent_jobs is not None and limits.concurrent_jobs - found.jobs < NEAR_JOBS:
            return True
        if limits.queued_tokens is not None and limits.queued_tokens - found.queued_tokens < NEAR_TOKENS:
            return True
    return False


def _prices(connection: Connection, wants: Sequence[QuotaRequest]) -> dict[str, tuple[Decimal, Decimal]]:
    rows = connection.execute(_PRICES, {"queues": sorted({part.queue for want in wants for part in want.parts})})
    return {row.queue: (Decimal(row.input), Decimal(row.output)) for row in rows}


def _cost(want: QuotaRequest, prices: Mapping[str, tuple[Decimal, Decimal]]) -> Decimal:
    """Return the most that the job can cost."""
    return sum((_part_cost(part, *prices.get(part.queue, (Decimal(0), Decimal(0)))) for part in want.parts), Decimal(0))


def _part_cost(part: QuotaPart, of_input: Decimal, of_output: Decimal) -> Decimal:
    num_output = max(part.cost_tokens - part.input_tokens, 0)
    return (part.input_tokens * of_input + num_output * of_output) / 1_000_000


def fold(db: Database, most: int = FOLD_MOST, *, past: int = 0) -> int:
    """Add at most ``most`` changes to the totals, if more than ``past`` changes wait. Returns their number.

    Safe to repeat and to run concurrently: one statement deletes a change and adds it.
    """
    with db.autocommit() as connection:
        return int(connection.execute(_FOLD, {"past": past, "most": most}).scalar_one())


def fold_for_the_dispatcher(db: Database) -> None:
    """Fold changes if no dispatcher does it. While a dispatcher runs, so many changes never wait.

    Each API process calls it every few seconds, because it must read all waiting changes.
    """
    for _ in range(_MOST_FOLDS):
        if fold(db, past=FOLD_PAST) < FOLD_MOST:
            return


def delete_zero_totals(db: Database) -> int:
    """Delete totals that are zero. Returns their number."""
    with db.autocommit() as connection:
        return connection.execute(_DELETE_ZERO).rowcount


def num_live_batches(db: Database, tenant_id: str, key_id: str | None = None) -> int:
    """Return the number of batches of a tenant, or of one of its keys, that have not ended."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        counted = connection.execute(NUM_LIVE_BATCHES, {"tenant_id": tenant_id, "api_key_id": key_id}).one()
    return int(counted.of_tenant if key_id is None else counted.of_key)
