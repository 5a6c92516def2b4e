"""``headrace approvals``: the calls of tools that wait for an approval, by the API."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from headrace.cli.client.verbs import LimitOption, connect
from headrace.cli.groups import noun
from headrace.cli.render import Json, JsonOption, duration, show, table
from headrace.store.errors import NotFound

app = noun("Calls of tools that wait for an approval: list, approve, refuse.")

ApprovalArgument = Annotated[str, typer.Argument(metavar="APPROVAL", help="The id of an approval.")]
ReasonOption = Annotated[str | None, typer.Option(help="Why; the model reads the reason of a refusal.")]


@app.command("list")
def list_all(
    job: Annotated[str | None, typer.Option(help="Only those of this job.")] = None,
    status: Annotated[
        str | None, typer.Option(help="pending, approved, refused, expired or cancelled; `all`: each of them.")
    ] = "pending",
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """List the calls that wait, or with --status those that have waited."""
    wanted = None if status == "all" else status
    with connect() as client:
        found = client.approvals(job_id=job, status=wanted, limit=limit)
    show(found, _listed(found) if found else "no calls wait for an approval", as_json=as_json)


@app.command()
def approve(approval: ApprovalArgument, reason: ReasonOption = None, as_json: JsonOption = False) -> None:
    """Let a call be made."""
    _answer(approval, True, reason, as_json=as_json)


@app.command()
def refuse(approval: ApprovalArgument, reason: ReasonOption = None, as_json: JsonOption = False) -> None:
    """Let the model know that a call was refused."""
    _answer(approval, False, reason, as_json=as_json)


def _answer(approval_id: str, is_approved: bool, reason: str | None, *, as_json: bool) -> None:
    with connect() as client:
        asked = _named(client.approvals(limit=100), approval_id)
        found = client.answer_approval(asked, approve=is_approved, reason=reason)
    show(found, f"{found['tool']} of {found['job_id']} is {found['status']}", as_json=as_json)


def _named(found: list[Json], approval_id: str) -> Json:
    asked = next((one for one in found if one["id"] == approval_id), None)
    if asked is None:
        raise NotFound(f"no approval {approval_id} among the newest: `headrace approvals` lists them")
    return asked


def _listed(found: list[Json]) -> Table:
    now = datetime.now(UTC).timestamp()
    rows = [
        (one["id"], one["tool"], one["arguments"] or "", one["status"], _left(one, now), one["job_id"]) for one in found
    ]
    return table("approval", "tool", "arguments", "status", "time left", "job", rows=rows)


def _left(approval: Json, now: float) -> str:
    return duration(max(0.0, approval["expires_at"] - now)) if approval["status"] == "pending" else ""
