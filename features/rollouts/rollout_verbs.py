"""``headrace rollout``: start rollouts of models and pipelines, look at them, end them. These commands use the API."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType

from headrace.cli.client.verbs import connect
from headrace.cli.groups import noun
from headrace.cli.render import Json, JsonOption, ago, show, table, write_text
from headrace.store.errors import InvalidRequest

app = noun("Rollouts of model versions: in steps, with a judge.")

RolloutArgument = Annotated[str, typer.Argument(metavar="ROLLOUT", help="A rollout's id (rollout_…).")]
OfPipeline = Annotated[str | None, typer.Option("--pipeline", metavar="NAME", help="The pipeline that it is of.")]
ReasonOption = Annotated[str | None, typer.Option(help="A sentence that is kept with the rollout.")]

_STEP = re.compile(r"(\d+(?:\.\d+)?):(?:(\d+)([smhd]))?(?:\+?(\d+)jobs)?")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@app.command("list")
def list_all(
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    pipeline: OfPipeline = None,
    as_json: JsonOption = False,
) -> None:
    """List the newest rollouts of models, or those of a pipeline."""
    with connect() as client:
        found = client.rollouts(model, pipeline=pipeline)
    rows = [
        (
            one["id"],
            f"{pipeline or one['model']}@{one['alias']}",
            f"{one['stable_version']} → {one['candidate_version']}",
            one["state"],
            f"{one['percent']:g} %",
            f"{one['current_step'] + 1} of {len(one['steps'])}",
            ago(one["started_at"]),
        )
        for one in found
    ]
    names = ("rollout", "alias", "versions", "state", "share", "step", "started")
    show(found, table(*names, rows=rows) if found else "no rollouts", as_json=as_json)


@app.command()
def start(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model, or an alias of it: smollm2@stable.")],
    to: Annotated[int, typer.Option("--to", min=1, help="The candidate: the number of a version that is ready.")],
    steps: Annotated[str, typer.Option(help="Percent and how long each holds: 1:10m,10:30m+500jobs,50:1h.")],
    sticky: Annotated[str, typer.Option(help="What keeps to one version: user, conversation, tenant or job.")] = "user",
    shadow: Annotated[bool, typer.Option("--shadow", help="The candidate gets copies, and no caller's job.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also if the candidate was rolled back before.")] = False,
    require_worker: Annotated[
        bool | None, typer.Option(help="Refuse if no worker serves the candidate; default: the server's setting.")
    ] = None,
    is_pipeline: Annotated[bool, typer.Option("--pipeline", help="NAME is a pipeline of the organization.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take an alias to another version in steps. `headrace rollout start smollm2 --to 3 --steps 1:10m,10:30m,50:1h`.

    New jobs are divided within two seconds. A candidate that the judge finds worse is rolled back by itself.
    """
    model, _, alias = name.partition("@")
    if is_pipeline and (sticky != "user" or require_worker is not None):
        raise InvalidRequest("a rollout of a pipeline has no --sticky and no --require-worker")
    body: Json = {
        "version": to,
        "steps": read_steps(steps),
        "mode": "shadow" if shadow else "canary",
        "force": force,
        **({"alias": alias} if alias else {}),
    }
    of_model: Json = {
        "model": model,
        "sticky_key": sticky,
        **({} if require_worker is None else {"require_worker": require_worker}),
    }
    with connect() as client:
        found = client.start_rollout(body, pipeline=model) if is_pipeline else client.start_rollout(body | of_model)
    does = "is copied to" if shadow else "goes to"
    share = f"{found['percent']:g} % of {model}@{found['alias']} {does} version {to}"
    show(found, "\n".join([f"{found['id']}: {share}", *_warnings(found)]), as_json=as_json)


@app.command("show")
def show_one(
    rollout: RolloutArgument,
    pipeline: OfPipeline = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write the evidence over time to this SVG file; - is stdout.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a rollout with the judge's checks."""
    with connect() as client:
        if plot is not None and pipeline is not None:
            raise InvalidRequest("--plot is for rollouts of models")
        if plot is not None:
            drawn = client.rollout_plot(rollout)
            if str(plot) == "-":
                return write_text(drawn)
            plot.write_text(drawn, encoding="utf-8")
        found = client.rollout(rollout, pipeline=pipeline)
    # The object has the id of a pipeline. A reader knows the name, which the command was given.
    return show(found, rollout_facts(found | {"model": pipeline or found["model"]}), as_json=as_json)


@app.command()
def pause(
    rollout: RolloutArgument, pipeline: OfPipeline = None, reason: ReasonOption = None, as_json: JsonOption = False
) -> None:
    """Hold the percentage. The judge still looks."""
    _change(rollout, "pause", reason, pipeline, as_json=as_json)


@app.command()
def resume(
    rollout: RolloutArgument, pipeline: OfPipeline = None, reason: ReasonOption = None, as_json: JsonOption = False
) -> None:
    """Go on with the step; the time of the pause does not count."""
    _change(rollout, "resume", reason, pipeline, as_json=as_json)


@app.command()
def promote(
    rollout: RolloutArgument, pipeline: OfPipeline = None, reason: ReasonOption = None, as_json: JsonOption = False
) -> None:
    """Let the alias name the candidate now."""
    _change(rollout, "promote", reason, pipeline, as_json=as_json)


@app.command()
def abort(
    rollout: RolloutArgument, pipeline: OfPipeline = None, reason: ReasonOption = None, as_json: JsonOption = False
) -> None:
    """Send new jobs to the stable version, and move the candidate's queued jobs there."""
    _change(rollout, "abort", reason, pipeline, as_json=as_json)


def read_steps(text: str) -> list[dict[str, Any]]:
    """Return steps such as ``1:10m,10:30m+500jobs`` as the API has them. Raises InvalidRequest."""
    steps = []
    for part in text.split(","):
        found = _STEP.fullmatch(part.strip())
        if found is None or part.strip().endswith(":"):
            raise InvalidRequest(
                f"a step is PERCENT:TIME, PERCENT:NUMBERjobs or both, such as 10:30m+500jobs, not {part.strip()!r}",
                param="steps",
            )
        percent, number, unit, jobs = found.groups()
        hold_s = int(number) * _UNITS[unit] if number else 0
        # Without a number the server's own applies: time alone is no evidence.
        steps.append({"percent": float(percent), "hold_s": hold_s} | ({"min_jobs": int(jobs)} if jobs else {}))
    return steps


def rollout_facts(one: Json) -> RenderableType:
    """A rollout and its checks."""
    lines = [
        f"{one['id']}  {one['model']}@{one['alias']}: version {one['stable_version']} → {one['candidate_version']}",
        f"{one['state']}, {one['percent']:g} %, step {one['current_step'] + 1} of {len(one['steps'])}, "
        f"revision {one['revision']}, started {ago(one['started_at'])}",
        *([one["reason"]] if one["reason"] else []),
        *([f"waits for {one['waits_for']}"] if one.get("waits_for") else []),
        *([f"{one['job_percent']:.3g} % of the newest jobs"] if one.get("job_percent") is not None else []),
        *_warnings(one),
    ]
    rows = [
        (
            check["name"].replace("_", " "),
            check["decision"],
            f"{check['log_e']:.1f}",
            f"{check['needed']:.1f}",
            check["text"],
        )
        for check in one["checks"]
    ]
    checks = (
        table("check", "decision", "evidence", "bad from", "", rows=rows) if rows else "the judge has not looked yet"
    )
    return Group("\n".join(lines), checks)


def _warnings(one: Json) -> list[str]:
    return [f"warning: {one['warning']}"] if one["warning"] else []


def _change(rollout: str, verb: str, reason: str | None, pipeline: str | None, *, as_json: bool) -> None:
    with connect() as client:
        found = client.change_rollout(rollout, verb, reason, pipeline=pipeline)
    show(found, f"{found['id']} is {found['state']}, {found['percent']:g} %", as_json=as_json)
