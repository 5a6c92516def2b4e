"""``headrace retention``: the retention of a tenant's contents, and purging them now.

Needs the database, not the API.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from headrace.cli.groups import noun
from headrace.cli.operator.admin import database, located
from headrace.cli.render import JsonOption, err
from headrace.cli.render import show as show_found
from headrace.features.retention import purge as purges
from headrace.features.retention import retention
from headrace.features.retention.purge import Scope, kinds
from headrace.features.retention.retention import DAY_S, NAMES, Retention
from headrace.store.db.database import Database
from headrace.store.digests import open_digests
from headrace.store.errors import HeadraceError, InvalidRequest
from headrace.store.redis.connection import connect
from headrace.store.settings import load_settings
from headrace.store.streams import stream_log
from headrace.store.tenants.api_keys import DEFAULT_TENANT, find_tenant
from headrace.store.tenants.tenant_limits import SetBy

app = noun("How long tenants' contents are kept, and forgetting them now.")

_ACTOR = "headrace retention"
_PURGE = "headrace retention purge"
_ROWS = 500

TenantOption = Annotated[str, typer.Option(help="Whose contents.")]
_DAYS = "Days, fractions too; 0: as soon as may be; 'default' lets the settings decide."


@app.command("show")
def show(tenant: TenantOption = DEFAULT_TENANT, as_json: JsonOption = False) -> None:
    """Show the retention of a tenant, by source."""
    with _database() as db:
        _print(db, find_tenant(db, tenant), as_json=as_json)


@app.command("set")
def set_(
    tenant: TenantOption = DEFAULT_TENANT,
    inputs_days: Annotated[str | None, typer.Option(help=f"What jobs were asked. {_DAYS}")] = None,
    outputs_days: Annotated[str | None, typer.Option(help=f"What they answered. {_DAYS}")] = None,
    deliveries_days: Annotated[str | None, typer.Option(help=f"Deliveries of webhooks. {_DAYS}")] = None,
    files_days: Annotated[str | None, typer.Option(help=f"Files. {_DAYS}")] = None,
    as_json: JsonOption = False,
) -> None:
    """Set the retention of a tenant; kinds that are not named do not change."""
    given = zip(NAMES, (inputs_days, outputs_days, deliveries_days, files_days), strict=True)
    named = {name: value for name, value in given if value is not None}
    if not named:
        raise InvalidRequest("name what to keep for how long, such as --outputs-days 3")
    with _database() as db:
        tenant_id = find_tenant(db, tenant)
        now = retention.read_retention(db, retention.defaults(load_settings()), tenant_id).operator.given()
        wanted = now | {name: _seconds(name, value) for name, value in named.items()}
        found = Retention(**{name: value for name, value in wanted.items() if value is not None})
        retention.set_retention(db, tenant_id, found, set_by=SetBy.OPERATOR, actor=_ACTOR)
        _print(db, tenant_id, as_json=as_json)


@app.command("purge")
def purge(
    tenant: Annotated[str, typer.Option(help="Whose contents to forget.")],
    user: Annotated[
        str | None, typer.Option(help="Only jobs that named this user (`user` or `safety_identifier`).")
    ] = None,
    before: Annotated[datetime | None, typer.Option(help="Only what came before this time, in UTC.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; otherwise it is only counted.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Erase the inputs and outputs of a tenant or of one of its users; rows, usage and audit log stay."""
    with _database() as db:
        scope = Scope(find_tenant(db, tenant), user, None if before is None else before.replace(tzinfo=UTC))
        found = purges.count(db, scope)
        done = found
        if yes:
            digests = open_digests(load_settings(), db.seal)
            purges.record_purge(db, scope, "contents.purging", found, digests=digests, actor=_PURGE)
            done = _purge(db, scope, found)
            purges.record_purge(db, scope, "contents.purged", done, digests=digests, actor=_PURGE)
    told = f"purged {_counts(done)}" if yes else f"would purge {_counts(found)}: repeat with --yes"
    if found["live"]:
        told += f"\n{found['live']} jobs, or their batches, have not ended: cancel them, and purge again"
    data = {"done": yes, **{kind: done[kind] for kind in kinds()}, "live": found["live"]}
    show_found(data, told, as_json=as_json)


def _purge(db: Database, scope: Scope, found: dict[str, int]) -> dict[str, int]:
    done = dict.fromkeys(kinds(), 0)
    columns = (TextColumn("forgetting {task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        for kind in kinds():
            bar = progress.add_task(kind, total=found[kind])
            after: str | None = ""
            while after is not None:
                step = purges.purge_step(db, kind, scope, after=after, limit=_ROWS)
                _forget_streams(step.job_ids)
                done[kind] += step.num
                after = step.after
                progress.update(bar, completed=done[kind])
    return done


def _forget_streams(job_ids: tuple[str, ...]) -> None:
    """Remove the jobs' streams from Redis too. Without a connection they expire after some minutes."""
    url = located(load_settings()).get("REDIS_URL")
    if url and job_ids:
        client = connect(url, timeout_s=1.0, retries=0)
        with suppress(HeadraceError):
            stream_log.forget(client, job_ids)
        client.close()


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{found[kind]} {kind}" for kind in kinds())


def _seconds(name: str, given: str) -> int | None:
    if given == "default":
        return None
    try:
        return round(float(given) * DAY_S)
    except (ValueError, OverflowError):
        option = name.replace("_s", "_days")
        raise InvalidRequest(f"{option} is a number of days or 'default', not {given!r}", param=option) from None


def _print(db: Database, tenant_id: str, *, as_json: bool) -> None:
    standing = retention.read_retention(db, retention.defaults(load_settings()), tenant_id)
    words = {"operator": standing.operator, "own": standing.own, "default": standing.default}
    lines = [tenant_id]
    for name in NAMES:
        said = [f"{whose} {_days(given[name])}" for whose, one in words.items() if name in (given := one.given())]
        holds = standing.effective.given().get(name)
        beside = f" ({', '.join(said)})" if said else ""
        shown = "until they are deleted" if holds is None else f"{_days(holds)} days"
        lines.append(f"  {name.removesuffix('_s'):<12} {shown}{beside}")
    data = {
        "tenant": tenant_id,
        "holds": standing.effective.given(),
        **{whose: one.given() for whose, one in words.items()},
    }
    show_found(data, "\n".join(lines), as_json=as_json)


def _days(seconds: int) -> str:
    return f"{seconds / DAY_S:g}"


@contextmanager
def _database() -> Iterator[Database]:
    db = database()
    try:
        yield db
    finally:
        db.close()
