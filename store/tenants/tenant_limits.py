"""Limits of tenants and of their keys: defaults from the settings, set by the operator or the tenant.

    tenant's limit = the stricter of (the operator's value, or else the default) and (the tenant's own value)
    key's limit    = the stricter of (the operator's value, or else the default) and (the tenant's own value)

A request must fit both limits. A tenant can lower its limits; only the operator can raise them. Usage is counted in
``store.tenants.quotas``, and rates in ``store.redis.rate_limiter``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.settings import Settings

_MOST: Final = 1 << 53


class SetBy(StrEnum):
    """Source of a limit."""

    OPERATOR = "operator"
    TENANT = "tenant"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a tenant or a key; None is no limit.

    ``concurrent_jobs``: jobs that are queued or running. ``queued_tokens``: prompt tokens and ``max_tokens`` of queued
    jobs. ``monthly_cost``: per calendar month in UTC, in the currency of the prices. ``live_batches``: batches that
    have not ended. ``concurrent_streams``: streams and waiting requests at one API process.
    """

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
        """Return the limits that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def stricter(self, other: "Limits") -> "Limits":
        """Return the lower of each two limits."""
        ours, theirs = self.given(), other.given()
        lower: dict[str, Any] = {name: min(ours.get(name, value), value) for name, value in theirs.items()}
        return Limits(**{**ours, **lower})

    def with_defaults(self, default: "Limits") -> "Limits":
        """Return these limits, and the default for those that are not set."""
        found: dict[str, Any] = {**default.given(), **self.given()}
        return Limits(**found)


NAMES: Final = tuple(field.name for field in fields(Limits))
_COLUMNS: Final = ", ".join(NAMES)


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """The limits of a request: those of the tenant, shared by all its keys, and those of the key."""

    tenant: Limits = Limits()
    key: Limits = Limits()


@dataclass(frozen=True, slots=True)
class LayeredLimits:
    """Limits of a tenant or a key, by source."""

    default: Limits
    operator: Limits
    own: Limits

    @property
    def ceiling(self) -> Limits:
        """The highest limits that the operator allows."""
        return self.operator.with_defaults(self.default)

    @property
    def effective(self) -> Limits:
        """The limits that apply."""
        return self.ceiling.stricter(self.own)


# Limits that were set for tenants and keys.
_READ = text(f"""
SELECT tenant_id, api_key_id, set_by, {_COLUMNS} FROM limit_overrides
WHERE tenant_id = ANY(CAST(:tenants AS varchar[]))
    AND (api_key_id IS NULL OR api_key_id = ANY(CAST(:keys AS varchar[])))
""")

# Whether the tenant has this key and it is not revoked.
_EXISTS = text("""
SELECT EXISTS (SELECT FROM api_keys WHERE tenant_id = :tenant_id AND id = :api_key_id AND revoked_at IS NULL)
""")

# Stores new limits.
_SET = text(f"""
INSERT INTO limit_overrides (tenant_id, api_key_id, set_by, {_COLUMNS})
VALUES (:tenant_id, :api_key_id, :set_by, {", ".join(f":{name}" for name in NAMES)})
ON CONFLICT (tenant_id, api_key_id, set_by) DO UPDATE SET
    {", ".join(f"{name} = EXCLUDED.{name}" for name in NAMES)}, updated_at = now()
""")

# The former limits, locked.
_BEFORE = text(f"""
SELECT {_COLUMNS} FROM limit_overrides
WHERE tenant_id = :tenant_id AND api_key_id IS NOT DISTINCT FROM :api_key_id AND set_by = :set_by FOR UPDATE
""")

# Copies the limits of a key to another one.
_COPY = text(f"""
INSERT INTO limit_overrides (tenant_id, api_key_id, set_by, {_COLUMNS})
SELECT tenant_id, :target, set_by, {_COLUMNS} FROM limit_overrides
WHERE tenant_id = :tenant_id AND api_key_id = :source AND set_by = ANY(CAST(:set_by AS varchar[]))
""")


def tenant_defaults(settings: Settings) -> Limits:
    """Return the limits of a tenant without limits set by the operator."""
    return Limits(
        queued_tokens=settings.max_queued_tokens_per_tenant,
        live_batches=settings.tenant_live_batches,
    )


def key_defaults(settings: Settings) -> Limits:
    """Return the limits of a key without limits set by the operator."""
    return Limits(
        requests_per_minute=settings.requests_per_minute,
        input_tokens_per_minute=settings.tokens_per_minute,
        concurrent_streams=settings.key_concurrent_streams,
    )


LimitOwner = tuple[str, str | None]
"""A tenant id and a key id; the key None: the tenant as a whole."""


def read_limits(db: Database, settings: Settings, keys: Iterable[LimitOwner]) -> dict[LimitOwner, LayeredLimits]:
    """Return the limits of each of these tenants or keys, by source."""
    asked = set(keys)
    tenants = sorted({tenant for tenant, _ in asked})
    values = {"tenants": tenants, "keys": [key for _, key in asked if key]}
    with db.autocommit(tenant_ids=tenants) as connection:
        rows = connection.execute(_READ, values).mappings().all()
    found = {(row["tenant_id"], row["api_key_id"], row["set_by"]): _limits(row) for row in rows}
    return {
        (tenant, key): LayeredLimits(
            key_defaults(settings) if key else tenant_defaults(settings),
            found.get((tenant, key, SetBy.OPERATOR), Limits()),
            found.get((tenant, key, SetBy.TENANT), Limits()),
        )
        for tenant, key in asked
    }


def _limits(row: Mapping[Any, Any]) -> Limits:
    return Limits(**{name: row[name] for name in NAMES})


def check_key(db: Database, tenant_id: str, key_id: str) -> None:
    """Raise NotFound if the tenant has no such key, or it is revoked."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        _check_key(connection, tenant_id, key_id)


def _check_key(connection: Connection, tenant_id: str, key_id: str) -> None:
    if not connection.execute(_EXISTS, {"tenant_id": tenant_id, "api_key_id": key_id}).scalar_one():
        raise NotFound(f"no API key {key_id[:64]} in force", param="key_id")


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
    """Set the operator's or the tenant's own limits for the tenant, or for one of its keys.

    Raises NotFound if the tenant has no such key. The caller must check limits of a tenant with ``check_lower``.
    """
    values: dict[str, Any] = {"tenant_id": tenant_id, "api_key_id": key_id, "set_by": set_by}
    with db.begin(tenant_id=tenant_id) as connection:
        if key_id is not None:
            _check_key(connection, tenant_id, key_id)
        row = connection.execute(_BEFORE, values).mappings().one_or_none()
        connection.execute(_SET, values | asdict(limits))
        before = None if row is None else _audit_fields(_limits(row))
        after = _audit_fields(limits)
        detail = {"set_by": set_by, "before": before, "after": after}
        resource = key_id or tenant_id
        record(connection, tenant_id, actor, "limits.set", resource, detail, request_id, before=before, after=after)


def copy_limits(connection: Connection, tenant_id: str, source: str, target: str, set_by: Iterable[SetBy]) -> None:
    """Copy the limits that these sources have set for a key to a new key."""
    values = {"tenant_id": tenant_id, "source": source, "target": target, "set_by": [str(one) for one in set_by]}
    connection.execute(_COPY, values)


def check_lower(wanted: Limits, ceiling: Limits) -> None:
    """Raise InvalidRequest if a limit is higher than the operator allows."""
    allowed = ceiling.given()
    for name, value in wanted.given().items():
        if name in allowed and value > allowed[name]:
            raise InvalidRequest(
                f"`{name}` may be {allowed[name]} at most: ask the operator for more than that", param=name
            )


def _audit_fields(limits: Limits) -> dict[str, int | str]:
    """Return the limits for the audit log, with exact amounts as text."""
    return {name: str(value) if isinstance(value, Decimal) else value for name, value in limits.given().items()}
