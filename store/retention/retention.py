"""How long a tenant's contents are kept: defaults from the settings, set by the operator, shortened by the tenant.

    holds = the shorter of (operator's, or else the default) and (the tenant's own)

    inputs, outputs   of a job that has ended, counted from its end     (what each is: ``store.retention.erasure``)
    deliveries        of webhooks that are settled, counted from the event
    files             counted from when they came; None: until somebody deletes them

``sweep`` forgets what is past its time, one tenant and a bounded number of rows at once, so that no lock is held for
long; rows that somebody else holds are left for the next time.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from sqlalchemy import Connection, TextClause, text

from store.audit.audit import record
from store.db.database import Database
from store.errors import InvalidRequest
from store.retention.erasure import (
    IS_NO_LIVE_LINE,
    IS_TOLD,
    KEPT_AT_LEAST_S,
    empty,
    empty_both,
    empty_inputs,
    empty_outputs,
)
from store.settings import Settings
from store.tenants.tenant_limits import SetBy

DAY_S: Final = 86_400
LONGEST_S: Final = 36_500 * DAY_S


@dataclass(frozen=True, slots=True)
class Retention:
    """Seconds for which each kind of content is kept; None says nothing of it. 0 is as soon as may be."""

    inputs_s: int | None = None
    outputs_s: int | None = None
    deliveries_s: int | None = None
    files_s: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            if not 0 <= value <= LONGEST_S:
                raise InvalidRequest(
                    f"contents are kept for 0 to {LONGEST_S // DAY_S} days", param=name.replace("_s", "_days")
                )

    def given(self) -> dict[str, int]:
        """Return those that say something."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def shorter(self, other: "Retention") -> "Retention":
        """Return the shorter of each."""
        ours = self.given()
        theirs = {name: min(ours.get(name, value), value) for name, value in other.given().items()}
        return Retention(**{**ours, **theirs})

    def else_(self, default: "Retention") -> "Retention":
        """Return these, with the default where they say nothing."""
        return Retention(**{**default.given(), **self.given()})


NAMES: Final = tuple(field.name for field in fields(Retention))


@dataclass(frozen=True, slots=True)
class Standing:
    """Retention of a tenant: what holds, and whose word it is."""

    default: Retention
    operator: Retention
    own: Retention

    @property
    def ceiling(self) -> Retention:
        """What the operator allows."""
        return self.operator.else_(self.default)

    @property
    def holds(self) -> Retention:
        """What holds."""
        return self.ceiling.shorter(self.own)


def defaults(settings: Settings) -> Retention:
    """Return what holds for a tenant for which nobody has set anything."""
    inputs_s = settings.result_ttl_s if settings.input_ttl_s is None else settings.input_ttl_s
    return Retention(
        inputs_s=round(inputs_s),
        outputs_s=round(settings.result_ttl_s),
        deliveries_s=round(settings.delivery_ttl_s),
        files_s=None if settings.file_ttl_s is None else round(settings.file_ttl_s),
    )


_READ = text("""
SELECT tenants.id AS tenant_id, set_by, inputs_s, outputs_s, deliveries_s, files_s
FROM tenants LEFT JOIN retention_overrides ON retention_overrides.tenant_id = tenants.id
WHERE CAST(:tenant_id AS varchar) IS NULL OR tenants.id = :tenant_id
""")


def read_standing(db: Database, default: Retention, tenant_id: str) -> Standing:
    """Return the retention of a tenant."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_READ, {"tenant_id": tenant_id}).mappings().all()
    return _standings(rows, default)[tenant_id]


def read_all(db: Database, default: Retention) -> dict[str, Retention]:
    """Return what holds for each tenant."""
    with db.autocommit() as connection:
        rows = connection.execute(_READ, {"tenant_id": None}).mappings().all()
    return {tenant_id: standing.holds for tenant_id, standing in _standings(rows, default).items()}


def _standings(rows: Iterable[Mapping[Any, Any]], default: Retention) -> dict[str, Standing]:
    found: dict[str, dict[str, Retention]] = {}
    for row in rows:
        found.setdefault(row["tenant_id"], {})[row["set_by"]] = Retention(**{name: row[name] for name in NAMES})
    nothing = Retention()
    return {
        tenant_id: Standing(default, words.get(SetBy.OPERATOR, nothing), words.get(SetBy.TENANT, nothing))
        for tenant_id, words in found.items()
    }


_BEFORE = text("""
SELECT inputs_s, outputs_s, deliveries_s, files_s FROM retention_overrides
WHERE tenant_id = :tenant_id AND set_by = :set_by FOR UPDATE
""")

_SET = text("""
INSERT INTO retention_overrides (tenant_id, set_by, inputs_s, outputs_s, deliveries_s, files_s)
VALUES (:tenant_id, :set_by, :inputs_s, :outputs_s, :deliveries_s, :files_s)
ON CONFLICT (tenant_id, set_by) DO UPDATE SET
    inputs_s = EXCLUDED.inputs_s, outputs_s = EXCLUDED.outputs_s, deliveries_s = EXCLUDED.deliveries_s,
    files_s = EXCLUDED.files_s, updated_at = now()
""")


def set_retention(
    db: Database, tenant_id: str, wanted: Retention, *, set_by: SetBy, actor: str, request_id: str | None = None
) -> None:
    """Let this be the operator's, or the tenant's own, word on how long its contents are kept; it replaces the former.

    What a tenant may set is the caller's to check (``check_shorter``).
    """
    values: dict[str, Any] = {"tenant_id": tenant_id, "set_by": set_by}
    with db.begin(tenant_id=tenant_id) as connection:
        row = connection.execute(_BEFORE, values).mappings().one_or_none()
        connection.execute(_SET, values | asdict(wanted))
        before = None if row is None else Retention(**row).given()
        after = wanted.given()
        detail = {"set_by": set_by, "before": before, "after": after}
        record(connection, tenant_id, actor, "retention.set", tenant_id, detail, request_id, before=before, after=after)


def check_shorter(wanted: Retention, ceiling: Retention) -> None:
    """Raise InvalidRequest if a tenant wants contents kept longer than the operator lets it."""
    allowed = ceiling.given()
    for name, value in wanted.given().items():
        if name in allowed and value > allowed[name]:
            param = name.replace("_s", "_days")
            days = allowed[name] / DAY_S
            raise InvalidRequest(f"`{param}` may be {days:g} at most: ask the operator for more than that", param=param)


_DUE = """
SELECT id FROM jobs
WHERE tenant_id = :tenant_id AND completed_at IS NOT NULL AND {kept}
    AND completed_at < now() - make_interval(secs => :ttl_s) AND {condition}
ORDER BY completed_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
"""
_INPUT_KEPT, _OUTPUT_KEPT = "input_purged_at IS NULL", "output_purged_at IS NULL"
_DUE_INPUTS = text(_DUE.format(kept=_INPUT_KEPT, condition=IS_NO_LIVE_LINE))
_DUE_OUTPUTS = text(_DUE.format(kept=_OUTPUT_KEPT, condition=f"{IS_NO_LIVE_LINE} AND {IS_TOLD}"))
_DUE_BOTH = text(_DUE.format(kept=f"{_INPUT_KEPT} AND {_OUTPUT_KEPT}", condition=f"{IS_NO_LIVE_LINE} AND {IS_TOLD}"))

_DUE_DELIVERIES = text("""
DELETE FROM webhook_deliveries WHERE id IN (
    SELECT id FROM webhook_deliveries
    WHERE tenant_id = :tenant_id AND created_at < now() - make_interval(secs => :ttl_s) AND state <> 'pending'
    ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED)
""")

# Their contents are removed from the storage as those of deleted files are.
_DUE_FILES = text("""
DELETE FROM files WHERE id IN (
    SELECT id FROM files
    WHERE tenant_id = :tenant_id AND created_at < now() - make_interval(secs => :ttl_s)
    ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED)
""")

_OVER = "COALESCE(completed_at, failed_at, expired_at, cancelled_at)"

_DUE_BATCHES = text(f"""
SELECT id FROM batches
WHERE tenant_id = :tenant_id AND purged_at IS NULL AND status IN ('failed', 'completed', 'expired', 'cancelled')
    AND {_OVER} < now() - make_interval(secs => :ttl_s)
ORDER BY id LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
""")

_LINES = text("""
DELETE FROM batch_lines WHERE (batch_id, line) IN (
    SELECT batch_id, line FROM batch_lines WHERE batch_id = ANY(CAST(:ids AS text[])) LIMIT :limit)
""")

_EMPTY_BATCHES = text("""
UPDATE batches SET metadata = NULL, errors = NULL, fingerprint = NULL, purged_at = now()
WHERE id = ANY(CAST(:ids AS text[]))
    AND NOT EXISTS (SELECT FROM batch_lines WHERE batch_lines.batch_id = batches.id)
""")


def empty_batches(connection: Connection, batch_ids: Iterable[str], limit: int) -> int:
    """Forget what batches that have ended said, beside their files, at most ``limit`` lines; return how many went."""
    ids = list(batch_ids)
    num_lines = connection.execute(_LINES, {"ids": ids, "limit": limit}).rowcount if ids else 0
    return num_lines + (connection.execute(_EMPTY_BATCHES, {"ids": ids}).rowcount if ids else 0)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a step forgot. ``more``: there may be more to forget now. ``job_ids`` are those whose outputs went."""

    num_inputs: int = 0
    num_outputs: int = 0
    num_deliveries: int = 0
    num_files: int = 0
    num_batch_rows: int = 0
    job_ids: tuple[str, ...] = ()
    more: bool = False

    def counts(self) -> dict[str, int]:
        """Return how much it was of each kind."""
        return {name: value for name, value in asdict(self).items() if name.startswith("num_")}


def sweep(db: Database, tenant_id: str, holds: Retention, limit: int) -> Swept:
    """Forget what one tenant's retention has let go, about ``limit`` rows of each kind, in a transaction a kind."""

    def values(ttl_s: int) -> dict[str, Any]:
        return {"tenant_id": tenant_id, "ttl_s": float(ttl_s), "limit": limit}

    def take(due: TextClause, ttl_s: int, forget: Callable[[Connection, list[str]], int]) -> list[str]:
        with db.begin(tenant_id=tenant_id) as connection:
            ids = list(connection.execute(due, values(max(ttl_s, round(KEPT_AT_LEAST_S)))).scalars())
            forget(connection, ids)
        return ids

    both: list[str] = []
    inputs: list[str] = []
    outputs: list[str] = []
    batch_rows = deliveries = files = 0
    if holds.inputs_s is not None and holds.outputs_s is not None:
        both = take(_DUE_BOTH, max(holds.inputs_s, holds.outputs_s), empty_both)
    if holds.inputs_s is not None and len(both) < limit:
        inputs = take(_DUE_INPUTS, holds.inputs_s, empty_inputs)
    if holds.outputs_s is not None and len(both) < limit:
        outputs = take(_DUE_OUTPUTS, holds.outputs_s, empty_outputs)
    if holds.outputs_s is not None:
        due = values(max(holds.outputs_s, round(KEPT_AT_LEAST_S)))
        with db.begin(tenant_id=tenant_id) as connection:
            batch_rows = empty_batches(connection, connection.execute(_DUE_BATCHES, due).scalars(), limit)
    if holds.deliveries_s is not None:
        with db.autocommit(tenant_id=tenant_id) as connection:
            deliveries = connection.execute(_DUE_DELIVERIES, values(holds.deliveries_s)).rowcount
    if holds.files_s is not None:
        with db.autocommit(tenant_id=tenant_id) as connection:
            files = connection.execute(_DUE_FILES, values(holds.files_s)).rowcount
    counts = (len(both) + len(inputs), len(both) + len(outputs), deliveries, files, batch_rows)
    return Swept(*counts, job_ids=(*both, *outputs), more=max(counts) >= limit)


_DUE_WHEN_ENDED = text(f"""
SELECT id FROM jobs
WHERE purge_when_ended AND completed_at IS NOT NULL AND output_purged_at IS NULL
    AND completed_at < now() - make_interval(secs => :ttl_s) AND {IS_NO_LIVE_LINE} AND {IS_TOLD}
ORDER BY completed_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
""")


def sweep_unwanted(db: Database, limit: int) -> Swept:
    """Forget jobs of all tenants that were deleted before they ended, or were not to be stored."""
    with db.begin() as connection:
        due = {"ttl_s": KEPT_AT_LEAST_S, "limit": limit}
        ids = list(connection.execute(_DUE_WHEN_ENDED, due).scalars())
        empty(connection, ids)
    return Swept(num_inputs=len(ids), num_outputs=len(ids), job_ids=tuple(ids), more=len(ids) >= limit)
