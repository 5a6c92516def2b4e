"""What tenants and their keys may use: limits with defaults from the settings, set by the operator or the tenant.

    tenant's limit = the stricter of (operator's, or else the default) and (the tenant's own)
    key's limit    = the stricter of (operator's, or else the default) and (the tenant's own)

A request must fit both. So a tenant can make its limits lower and never raise them: that is the operator's. Knows
nothing of how much is used: that is ``store.tenants.quotas``', and for rates ``store.redis.rate_limiter``'.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, text

from store.audit.audit import record
from store.db.database import Database
from store.errors import InvalidRequest, NotFound
from store.settings import Settings

_MOST: Final = 1 << 53


class SetBy(StrEnum):
    """Whose word a limit is."""

    OPERATOR = "operator"
    TENANT = "tenant"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be used; None is no limit. ``concurrent_jobs`` are queued or running, ``queued_tokens`` prompt and
    ``max_tokens`` of the queued ones, ``monthly_cost`` of a calendar month in UTC in the currency of the prices,
    ``live_batches`` those that have not ended, ``concurrent_streams`` streams and waits at one API process."""

    requests_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    concurrent_jobs: int | None = None
    queued_tokens: int | None = None
    monthly_cost: Decimal | None = None
    live_batches: int | None = None
    concurrent_streams: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            if not (value.is_finite() if isinstance(value, Decimal) else True) or not 0 <= value <= _MOST:
                raise InvalidRequest(f"a limit is a number from 0 up, not {value}", param=name)
            if value == 0 and name.endswith("per_minute"):
                raise InvalidRequest(f"{name} is at least 1: revoke the key to let nothing in", param=name)

    def given(self) -> dict[str, int | Decimal]:
        """Return those that are limits."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def stricter(self, other: "Limits") -> "Limits":
        """Return the lower of each."""
        ours, theirs = self.given(), other.given()
        lower: dict[str, Any] = {name: min(ours.get(name, value), value) for name, value in theirs.items()}
        return Limits(**{**ours, **lower})

    def else_(self, default: "Limits") -> "Limits":
        """Return these, with the default where there is none."""
        found: dict[str, Any] = {**default.given(), **self.given()}
        return Limits(**found)


NAMES: Final = tuple(field.name for field in fields(Limits))
_COLUMNS: Final = ", ".join(NAMES)


@dataclass(frozen=True, slots=True)
class Held:
    """The limits that hold for requests with one key: the tenant's, which all its keys share, and the key's own."""

    tenant: Limits = Limits()
    key: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Standing:
    """Limits of a tenant or a key: what holds, and whose word it is."""

    default: Limits
    operator: Limits
    own: Limits

    @property
    def ceiling(self) -> Limits:
        """What the operator allows."""
        return self.operator.else_(self.default)

    @property
    def holds(self) -> Limits:
        """What holds."""
        return self.ceiling.stricter(self.own)


def tenant_defaults(settings: Settings) -> Limits:
    """Return what holds for a tenant for which the operator has set nothing."""
    return Limits(
        requests_per_minute=settings.tenant_requests_per_minute,
        input_tokens_per_minute=settings.tenant_tokens_per_minute,
        concurrent_jobs=settings.tenant_concurrent_jobs,
        queued_tokens=settings.max_queued_tokens_per_tenant,
        monthly_cost=settings.tenant_monthly_cost,
        live_batches=settings.tenant_live_batches,
        concurrent_streams=settings.tenant_concurrent_streams,
    )


def key_defaults(settings: Settings) -> Limits:
    """Return what holds for a key for which the operator has set nothing."""
    return Limits(
        requests_per_minute=settings.requests_per_minute,
        input_tokens_per_minute=settings.tokens_per_minute,
        concurrent_jobs=settings.key_concurrent_jobs,
        queued_tokens=settings.key_queued_tokens,
        monthly_cost=settings.key_monthly_cost,
        live_batches=settings.key_live_batches,
        concurrent_streams=settings.key_concurrent_streams,
    )


_READ = text(f"""
SELECT tenant_id, api_key_id, set_by, {_COLUMNS} FROM limit_overrides
WHERE tenant_id = ANY(CAST(:tenants AS varchar[]))
    AND (api_key_id IS NULL OR api_key_id = ANY(CAST(:keys AS varchar[])))
""")

Whose = tuple[str, str | None]
"""A tenant, or one of its keys."""


def read_standings(db: Database, settings: Settings, keys: Iterable[Whose]) -> dict[Whose, Standing]:
    """Return the limits of each tenant or key that is asked for."""
    asked = set(keys)
    tenants = sorted({tenant for tenant, _ in asked})
    values = {"tenants": tenants, "keys": [key for _, key in asked if key]}
    with db.autocommit(tenant_ids=tenants) as connection:
        rows = connection.execute(_READ, values).mappings().all()
    found = {(row["tenant_id"], row["api_key_id"], row["set_by"]): _limits(row) for row in rows}
    return {
        (tenant, key): Standing(
            key_defaults(settings) if key else tenant_defaults(settings),
            found.get((tenant, key, SetBy.OPERATOR), Limits()),
            found.get((tenant, key, SetBy.TENANT), Limits()),
        )
        for tenant, key in asked
    }


def _limits(row: Mapping[Any, Any]) -> Limits:
    return Limits(**{name: row[name] for name in NAMES})


_EXISTS = text("""
SELECT EXISTS (SELECT FROM api_keys WHERE tenant_id = :tenant_id AND id = :api_key_id AND revoked_at IS NULL)
""")


def check_key(db: Database, tenant_id: str, key_id: str) -> None:
    """Raise NotFound if the tenant has no such key in force."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        _check_key(connection, tenant_id, key_id)


def _check_key(connection: Connection, tenant_id: str, key_id: str) -> None:
    if not connection.execute(_EXISTS, {"tenant_id": tenant_id, "api_key_id": key_id}).scalar_one():
        raise NotFound(f"no API key {key_id[:64]} in force", param="key_id")


_SET = text(f"""
INSERT INTO limit_overrides (tenant_id, api_key_id, set_by, {_COLUMNS})
VALUES (:tenant_id, :api_key_id, :set_by, {", ".join(f":{name}" for name in NAMES)})
ON CONFLICT (tenant_id, api_key_id, set_by) DO UPDATE SET
    {", ".join(f"{name} = EXCLUDED.{name}" for name in NAMES)}, updated_at = now()
""")

_BEFORE = text(f"""
SELECT {_COLUMNS} FROM limit_overrides
WHERE tenant_id = :tenant_id AND api_key_id IS NOT DISTINCT FROM :api_key_id AND set_by = :set_by FOR UPDATE
""")


def set_limits(
    db: Database,
    tenant_id: str,
    key_id: str | None,
    limits: Limits,
    *,
    set_by: SetBy,
    actor: str,
    request_id: str | None = None,
) -> None:
    """Let these be what the operator, or the tenant itself, allows the tenant, or one key of it.

    Raises NotFound if the tenant has no such key. What the tenant may set is the caller's to check (``check_lower``).
    """
    values: dict[str, Any] = {"tenant_id": tenant_id, "api_key_id": key_id, "set_by": set_by}
    with db.begin(tenant_id=tenant_id) as connection:
        if key_id is not None:
            _check_key(connection, tenant_id, key_id)
        row = connection.execute(_BEFORE, values).mappings().one_or_none()
        connection.execute(_SET, values | asdict(limits))
        before = None if row is None else _told(_limits(row))
        after = _told(limits)
        detail = {"set_by": set_by, "before": before, "after": after}
        resource = key_id or tenant_id
        record(connection, tenant_id, actor, "limits.set", resource, detail, request_id, before=before, after=after)


_COPY = text(f"""
INSERT INTO limit_overrides (tenant_id, api_key_id, set_by, {_COLUMNS})
SELECT tenant_id, :target, set_by, {_COLUMNS} FROM limit_overrides
WHERE tenant_id = :tenant_id AND api_key_id = :source AND set_by = ANY(CAST(:set_by AS varchar[]))
""")


def copy_limits(connection: Connection, tenant_id: str, source: str, target: str, set_by: Iterable[SetBy]) -> None:
    """Let a new key have what was set for another one, by these."""
    values = {"tenant_id": tenant_id, "source": source, "target": target, "set_by": [str(one) for one in set_by]}
    connection.execute(_COPY, values)


def check_lower(wanted: Limits, ceiling: Limits) -> None:
    """Raise InvalidRequest if a tenant asks for more than the operator allows."""
    allowed = ceiling.given()
    for name, value in wanted.given().items():
        if name in allowed and value > allowed[name]:
            raise InvalidRequest(
                f"`{name}` may be {allowed[name]} at most: ask the operator for more than that", param=name
            )


def _told(limits: Limits) -> dict[str, int | str]:
    """For the audit log: money as text, so that nothing of it is lost."""
    return {name: str(value) if isinstance(value, Decimal) else value for name, value in limits.given().items()}
