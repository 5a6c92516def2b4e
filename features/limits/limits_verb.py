"""Limits set by the operator for a tenant or a key, and their usage."""

from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer

from headrace.cli.groups import noun
from headrace.cli.operator.admin import database
from headrace.cli.render import JsonOption
from headrace.cli.render import show as show_found
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.settings import load_settings
from headrace.store.tenants.api_keys import DEFAULT_TENANT, find_tenant
from headrace.store.tenants.quotas import num_live_batches, usage_of
from headrace.store.tenants.tenant_limits import (
    NAMES,
    LayeredLimits,
    Limits,
    SetBy,
    check_key,
    key_defaults,
    read_limits,
    set_limits,
)

limits = noun("Limits of tenants and keys.")

TenantOption = Annotated[str, typer.Option(help="Tenant with these limits.")]
KeyOption = Annotated[str | None, typer.Option(help="Of this key (key_…) alone; otherwise of all keys together.")]

_HELP = "A number; 'default' lets the settings decide."


@limits.command("show")
def show(tenant: TenantOption = DEFAULT_TENANT, key: KeyOption = None, as_json: JsonOption = False) -> None:
    """Show the limits of a tenant or a key, and their usage."""
    db = database()
    try:
        tenant_id = find_tenant(db, tenant)
        if key is not None:
            check_key(db, tenant_id, key)
        _print(db, tenant_id, key, as_json=as_json)
    finally:
        db.close()


@limits.command("set")
def set_(
    tenant: TenantOption = DEFAULT_TENANT,
    key: KeyOption = None,
    requests_per_minute: Annotated[str | None, typer.Option(help=_HELP)] = None,
    input_tokens_per_minute: Annotated[str | None, typer.Option(help=_HELP)] = None,
    concurrent_jobs: Annotated[str | None, typer.Option(help=f"Queued or running. {_HELP}")] = None,
    queued_tokens: Annotated[str | None, typer.Option(help=_HELP)] = None,
    monthly_cost: Annotated[str | None, typer.Option(help=f"In the currency of the prices. {_HELP}")] = None,
    live_batches: Annotated[str | None, typer.Option(help=f"Batches that have not ended. {_HELP}")] = None,
    concurrent_streams: Annotated[str | None, typer.Option(help=f"Streams and waits, at one API. {_HELP}")] = None,
    as_json: JsonOption = False,
) -> None:
    """Set limits of a tenant or a key; limits that are not named do not change."""
    given = (
        requests_per_minute,
        input_tokens_per_minute,
        concurrent_jobs,
        queued_tokens,
        monthly_cost,
        live_batches,
        concurrent_streams,
    )
    named = {name: value for name, value in zip(NAMES, given, strict=True) if value is not None}
    if not named:
        raise InvalidRequest("name a limit to set, such as --requests-per-minute 600")
    db = database()
    try:
        tenant_id = find_tenant(db, tenant)
        whose = (tenant_id, key)
        now = read_limits(db, load_settings(), [whose])[whose].operator.given()
        wanted = now | {name: _amount(name, value) for name, value in named.items()}
        found = Limits(**{name: value for name, value in wanted.items() if value is not None})  # type: ignore[arg-type]
        set_limits(db, tenant_id, key, found, set_by=SetBy.OPERATOR, actor="headrace limits")
        _print(db, tenant_id, key, as_json=as_json)
    finally:
        db.close()


def _amount(name: str, given: str) -> int | Decimal | None:
    if given == "default":
        return None
    try:
        return Decimal(given) if name == "monthly_cost" else int(given)
    except (InvalidOperation, ValueError):
        raise InvalidRequest(f"a limit is a number or 'default', not {given!r}", param=name) from None


def _print(db: Database, tenant_id: str, key: str | None, *, as_json: bool) -> None:
    settings = load_settings()
    standing = read_limits(db, settings, [(tenant_id, key)])[(tenant_id, key)]
    usage, batches = usage_of(db, tenant_id, key or ""), num_live_batches(db, tenant_id, key)
    used = {
        "concurrent_jobs": str(usage.jobs),
        "queued_tokens": str(usage.queued_tokens),
        "live_batches": str(batches),
        "monthly_cost": f"{money(usage.spent)} spent, {money(usage.reserved)} reserved",
    }
    # The limits of a tenant do not include the default limits of each key.
    each = {} if key else key_defaults(settings).given()
    lines = [_line(name, standing, each.get(name), used.get(name)) for name in NAMES]
    words = {"default": standing.default, "operator": standing.operator, "own": standing.own}
    data = {
        "tenant": tenant_id,
        "key": key,
        "holds": standing.effective.given(),
        **{whose: limits.given() for whose, limits in words.items()},
        "default_of_each_key": each,
        "used": {
            "concurrent_jobs": usage.jobs,
            "queued_tokens": usage.queued_tokens,
            "live_batches": batches,
            "cost": usage.spent,
            "reserved_cost": usage.reserved,
        },
    }
    show_found(data, "\n".join([key or tenant_id, *lines]), as_json=as_json)


def _line(name: str, standing: LayeredLimits, of_each_key: int | Decimal | None, used: str | None) -> str:
    words = [
        f"{whose} {found[name]}"
        for whose, limit in (("operator", standing.operator), ("own", standing.own), ("default", standing.default))
        if name in (found := limit.given())
    ]
    holds = standing.effective.given().get(name)
    told = "no limit" if holds is None else str(holds)
    if of_each_key is not None:
        told = f"{told} for all keys together" if holds is None else told
        words.append(f"each key by default {of_each_key}")
    beside = f" ({', '.join(words)})" if words else ""
    return f"  {name:<24} {told}{beside}{f'; used: {used}' if used is not None else ''}"


def money(amount: Decimal) -> str:
    """An amount with at most six decimals, without trailing zeros."""
    rounded = amount.quantize(Decimal("0.000001"))
    if amount and not rounded:
        return "less than 0.000001"
    text = f"{rounded:f}"
    return text.rstrip("0").rstrip(".")
