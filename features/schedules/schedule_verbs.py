"""``headrace schedules``: jobs and batches that begin again by a line of cron, by the API."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from headrace.cli.client.object_files import read_object
from headrace.cli.client.verbs import connect
from headrace.cli.groups import noun
from headrace.cli.render import Json, JsonOption, show, table

app = noun("Schedules: list, create, replace, show, pause, resume, delete.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A schedule's name or id.")]


@app.command("list")
def list_all(as_json: JsonOption = False) -> None:
    """List the schedules, with their next and last run."""
    with connect() as client:
        found: list[Json] = client.request("GET", "/v1/schedules")["data"]
    columns = ("schedule", "cron", "zone", "next", "last run", "runs", "skipped", "error")
    told = table(*columns, rows=map(_row, found)) if found else "no schedules: `headrace schedules create`"
    show(found, told, as_json=as_json)


@app.command()
def create(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The body as in the API, JSON or YAML; - is stdin.")],
    as_json: JsonOption = False,
) -> None:
    """Create a schedule: {"name": …, "cron": …, "zone": …, "job": {…}}, or with "batch" in place of "job"."""
    with connect() as client:
        found = client.request("POST", "/v1/schedules", json=read_object(file))
    show(found, f"{found['name']} is {found['id']}; it runs at {_time(found['next_at'])}", as_json=as_json)


@app.command()
def replace(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The whole body, as for create; - is stdin.")],
    as_json: JsonOption = False,
) -> None:
    """Give the schedule that the body names another body. Its runs and its pause stay."""
    body = read_object(file)
    with connect() as client:
        found = client.request("PUT", _path(str(body.get("name", ""))), json=body)
    show(found, f"{found['name']} runs at {_time(found['next_at'])}", as_json=as_json)


@app.command("show")
def show_one(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show a schedule."""
    with connect() as client:
        found = client.request("GET", _path(name))
    show(found, "\n".join(f"{key:<12} {value}" for key, value in found.items() if value is not None), as_json=as_json)


@app.command()
def pause(name: NameArgument, as_json: JsonOption = False) -> None:
    """Begin no more runs of a schedule until it is resumed."""
    with connect() as client:
        found = client.request("POST", f"{_path(name)}/pause")
    show(found, f"{found['name']} is paused", as_json=as_json)


@app.command()
def resume(name: NameArgument, as_json: JsonOption = False) -> None:
    """Go on with a schedule, with the rights of your key."""
    with connect() as client:
        found = client.request("POST", f"{_path(name)}/resume")
    show(found, f"{found['name']} runs at {_time(found['next_at'])}", as_json=as_json)


@app.command()
def delete(name: NameArgument, as_json: JsonOption = False) -> None:
    """Delete a schedule. Its runs stay."""
    with connect() as client:
        found = client.request("DELETE", _path(name))
    show(found, f"{name} is deleted", as_json=as_json)


def _path(name: str) -> str:
    return f"/v1/schedules/{quote(name, safe='')}"


def _time(at: int | None) -> str:
    return "" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def _row(one: Json) -> tuple[str, ...]:
    next_run = "paused" if one["status"] == "paused" else _time(one["next_at"])
    error = (one["last_error"] or {}).get("message", "")
    numbers = (str(one["num_runs"]), str(one["num_skipped"]))
    return (one["name"], one["cron"], one["zone"], next_run, one["last_run_id"] or "", *numbers, error)
