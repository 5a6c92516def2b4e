"""Retention of a tenant's contents: defaults from the settings, set by the operator, shortened by the tenant.

    effective = the shorter of (the operator's value, or else the default) and (the tenant's own value)

    inputs, outputs   of a job, counted from its end                    (see ``store.jobs.erasure``)
    deliveries        of webhooks that are not pending, counted from the event
    files             counted from their creation; None: until they are deleted

Other rows with contents, such as conversations, their features erase by these times (``store.jobs.erasure``).

``sweep`` erases expired contents of one tenant, a bounded number of rows in each transaction, so that no lock is held
for long. Rows that are locked by another transaction are left for the next sweep.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, TextClause, text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.erasure import (
    MIN_RETENTION_S,
    erase,
    erase_both,
    erase_inputs,
    erase_outputs,
    erasure_parts,
    not_needed,
)
from headrace.store.settings import Settings
from headrace.store.tenants.tenant_limits import SetBy

DAY_S: Final = 86_400
LONGEST_S: Final = 36_500 * DAY_S


@dataclass(frozen=True, slots=True)
class Retention:
    """Retention of each kind of content in seconds. None: not set. 0: as short as possible."""

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
        """Return the values that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def shorter(self, other: "Retention") -> "Retention":
        """Return the shorter of each two values."""
        ours = self.given()
        theirs = {name: min(ours.get(name, value), value) for name, value in other.given().items()}
        return Retention(**{**ours, **theirs})

    def with_defaults(self, default: "Retention") -> "Retention":
        """Return these values, and the default for those that are not set."""
        return Retention(**{**default.given(), **self.given()})


NAMES: Final = tuple(one.name for one in fields(Retention))


@dataclass(frozen=True, slots=True)
class LayeredRetention:
    """Retention of a tenant, by source."""

    default: Retention
    operator: Retention
    own: Retention

    @property
    def ceiling(self) -> Retention:
        """The longest retention that the operator allows."""
        return self.operator.with_defaults(self.default)

    @property
    def effective(self) -> Retention:
        """The retention that applies."""
        return self.ceiling.shorter(self.own)


# Retention that the operator and the tenants have set, of one tenant or of all.
_READ = text("""
SELECT tenants.id AS tenant_id, set_by, inputs_s, outputs_s, deliveries_s, files_s
FROM tenants LEFT JOIN retention_overrides ON retention_overrides.tenant_id = tenants.id
WHERE CAST(:tenant_id AS varchar) IS NULL OR tenants.id = :tenant_id
""")

# The former values, locked.
_BEFORE = text("""
SELECT inputs_s, outputs_s, deliveries_s, files_s FROM retention_overrides
WHERE tenant_id = :tenant_id AND set_by = :set_by FOR UPDATE
""")

# Stores new values.
_SET = text("""
INSERT INTO retention_overrides (tenant_id, set_by, inputs_s, outputs_s, deliveries_s, files_s)
VALUES (:tenant_id, :set_by, :inputs_s, :outputs_s, :deliveries_s, :files_s)
ON CONFLICT (tenant_id, set_by) DO UPDATE SET
    inputs_s = EXCLUDED.inputs_s, outputs_s = EXCLUDED.outputs_s, deliveries_s = EXCLUDED.deliveries_s,
    files_s = EXCLUDED.files_s, updated_at = now()
""")

_INPUT_KEPT, _OUTPUT_KEPT = "input_purged_at IS NULL", "output_purged_at IS NULL"


@cache
def _due(kept: str, *, output: bool) -> TextClause:
    """Return jobs of a tenant with expired contents. Their steps are erased with them."""
    return text(f"""
SELECT id FROM jobs
WHERE tenant_id = :tenant_id AND completed_at IS NOT NULL AND parent_id IS NULL AND {kept}
    AND completed_at < now() - make_interval(secs => :ttl_s) AND {not_needed(output=output)}
ORDER BY completed_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
""")


@cache
def _due_when_ended() -> TextClause:
    """Return ended jobs that are marked to be erased at their end."""
    return text(f"""
SELECT id FROM jobs
WHERE purge_when_ended AND completed_at IS NOT NULL AND output_purged_at IS NULL
    AND completed_at < now() - make_interval(secs => :ttl_s) AND {not_needed(output=True)}
ORDER BY completed_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
""")


def defaults(settings: Settings) -> Retention:
    """Return the retention of a tenant without values of its own."""
    inputs_s = settings.result_ttl_s if settings.input_ttl_s is None else settings.input_ttl_s
    return Retention(
        inputs_s=round(inputs_s),
        outputs_s=round(settings.result_ttl_s),
        deliveries_s=round(settings.delivery_ttl_s),
        files_s=None if settings.file_ttl_s is None else round(settings.file_ttl_s),
    )


def read_retention(db: Database, default: Retention, tenant_id: str) -> LayeredRetention:
    """Return the retention of a tenant, by source."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_READ, {"tenant_id": tenant_id}).mappings().all()
    return _by_tenant(rows, default)[tenant_id]


def read_all(db: Database, default: Retention) -> dict[str, Retention]:
    """Return the effective retention of each tenant."""
    with db.autocommit() as connection:
        rows = connection.execute(_READ, {"tenant_id": None}).mappings().all()
    return {tenant_id: found.effective for tenant_id, found in _by_tenant(rows, default).items()}


def _by_tenant(rows: Iterable[Mapping[Any, Any]], default: Retention) -> dict[str, LayeredRetention]:
    found: dict[str, dict[str, Retention]] = {}
    for row in rows:
        found.setdefault(row["tenant_id"], {})[row["set_by"]] = Retention(**{name: row[name] for name in NAMES})
    nothing = Retention()
    return {
        tenant_id: LayeredRetention(default, values.get(SetBy.OPERATOR, nothing), values.get(SetBy.TENANT, nothing))
        for tenant_id, values in found.items()
    }


def set_retention(
    db: Database, tenant_id: str, wanted: Retention, *, set_by: SetBy, actor: str, request_id: str | None = None
) -> None:
    """Set the operator's or the tenant's own retention; it replaces the former one.

    The caller must check the values of a tenant with ``check_shorter``.
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
    """Raise InvalidRequest if a tenant's value is longer than the operator allows."""
    allowed = ceiling.given()
    for name, value in wanted.given().items():
        if name in allowed and value > allowed[name]:
            param = name.replace("_s", "_days")
            days = allowed[name] / DAY_S
            raise InvalidRequest(f"`{param}` may be {days:g} at most: ask the operator for more than that", param=param)


@dataclass(frozen=True, slots=True)
class ErasureCounts:
    """Number of erased rows by kind. ``more``: more rows may be due. ``job_ids``: jobs of which outputs were erased."""

    counts: Counter[str] = field(default_factory=Counter)
    job_ids: tuple[str, ...] = ()
    more: bool = False


def sweep(db: Database, tenant_id: str, effective: Retention, limit: int) -> ErasureCounts:
    """Erase expired contents of one tenant: about ``limit`` rows of each kind, one transaction for each kind."""

    def erase_due(due: TextClause, ttl_s: int, erase: Callable[[Connection, list[str]], int]) -> list[str]:
        values = {"tenant_id": tenant_id, "ttl_s": max(float(ttl_s), MIN_RETENTION_S), "limit": limit}
        with db.begin(tenant_id=tenant_id) as connection:
            ids = list(connection.execute(due, values).scalars())
            erase(connection, ids)
        return ids

    both: list[str] = []
    inputs: list[str] = []
    outputs: list[str] = []
    if effective.inputs_s is not None and effective.outputs_s is not None:
        due = _due(f"{_INPUT_KEPT} AND {_OUTPUT_KEPT}", output=True)
        both = erase_due(due, max(effective.inputs_s, effective.outputs_s), erase_both)
    if effective.inputs_s is not None and len(both) < limit:
        inputs = erase_due(_due(_INPUT_KEPT, output=False), effective.inputs_s, erase_inputs)
    if effective.outputs_s is not None and len(both) < limit:
        outputs = erase_due(_due(_OUTPUT_KEPT, output=True), effective.outputs_s, erase_outputs)
    counts = Counter(num_inputs=len(both) + len(inputs), num_outputs=len(both) + len(outputs))
    for part in erasure_parts():
        for name, sweep_rows in part.sweeps.items():
            with db.begin(tenant_id=tenant_id) as connection:
                counts[name] = sweep_rows(connection, tenant_id, effective.given(), limit)
    return ErasureCounts(counts, job_ids=(*both, *outputs), more=max(counts.values()) >= limit)


def sweep_marked(db: Database, limit: int) -> ErasureCounts:
    """Erase ended jobs of all tenants that were deleted before they ended, or submitted with ``store: false``."""
    with db.begin() as connection:
        due = {"ttl_s": MIN_RETENTION_S, "limit": limit}
        ids = list(connection.execute(_due_when_ended(), due).scalars())
        erase(connection, ids)
    counts = Counter(num_inputs=len(ids), num_outputs=len(ids))
    return ErasureCounts(counts, job_ids=tuple(ids), more=len(ids) >= limit)
