"""``headrace pipelines``: stored lists of steps of the organization, by the API."""

import re
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.client.object_files import read_object
from headrace.cli.client.verbs import connect
from headrace.cli.groups import noun
from headrace.cli.render import Json, JsonOption, ago, show, table
from headrace.client import ResourceMissing
from headrace.features.flows.commands.pipeline_drawing import svg, text_lines
from headrace.store.errors import InvalidRequest

app = noun("Pipelines: list, show, add, alias, unalias, remove.")

PipelineArgument = Annotated[str, typer.Argument(metavar="NAME", help="A pipeline's name or id; NAME@2, NAME@ALIAS.")]

_CANARY = re.compile(r"(\d{1,9}):(\d{1,2})")


@app.command("list")
def list_all(as_json: JsonOption = False) -> None:
    """List the pipelines with their newest versions."""
    with connect() as client:
        found = client.pipelines()
    rows = [
        (one["name"], str(one["version"]), ", ".join(step["name"] for step in one["steps"]), ago(one["created_at"]))
        for one in found
    ]
    told = (
        table("pipeline", "version", "steps", "made", rows=rows) if found else "no pipelines: `headrace pipelines add`"
    )
    show(found, told, as_json=as_json)


@app.command("show")
def show_one(
    pipeline: PipelineArgument,
    picture: Annotated[Path | None, typer.Option("--svg", help="Also draw it into this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a version of a pipeline: its digest, aliases, input, and its steps as a picture."""
    with connect() as client:
        found = client.pipeline(pipeline)
    title = f"{found['name']}@{found['version']}"
    if picture is not None:
        picture.write_text(svg(title, found["steps"]), encoding="utf-8")
    lines = [
        f"{title}  {found['digest']}",
        *([found["description"]] if found["description"] else []),
        *([f"aliases: {', '.join(found['aliases'])}"] if found["aliases"] else []),
        *[f"canary of {one['alias']}: version {one['version']}, {one['percent']} %" for one in found["canaries"]],
        *([f"input: {', '.join(_inputs(found))}"] if _inputs(found) else []),
        "",
        *text_lines(found["steps"]),
    ]
    show(found, "\n".join(lines), as_json=as_json)


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A pipeline's name; it is made if there is none.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The pipeline as YAML or JSON; - is stdin.")],
    as_json: JsonOption = False,
) -> None:
    """Store steps as the next version of a pipeline.

    The file is as in the API: {"input_schema": {...}, "steps": [...]}.
    """
    pipeline = read_object(file)
    with connect() as client:
        try:
            found = client.add_pipeline_version(name, pipeline)
        except ResourceMissing as error:
            if error.param != "pipeline":  # a model of a step is missing
                raise
            found = client.create_pipeline({**pipeline, "name": name})
    show(found, f"{name}@{found['version']} is stored", as_json=as_json)


@app.command("alias")
def set_alias(
    name: PipelineArgument,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="default, or a name of your own.")],
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The number of a version.")],
    canary: Annotated[
        str | None, typer.Option(metavar="VERSION:PERCENT", help="A version that gets a part of the users: 3:10.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Let an alias name a version; `default` is what NAME means. Without --canary it has none."""
    body: Json = {"version": version}
    told = f"{name}@{alias} means {name}@{version}"
    if canary is not None:
        match = _CANARY.fullmatch(canary)
        if match is None:
            raise InvalidRequest(f"--canary is VERSION:PERCENT, for example 3:10, not {canary}")
        body["canary"] = {"version": int(match[1]), "percent": int(match[2])}
        told += f", and for {int(match[2])} % of the users {name}@{int(match[1])}"
    with connect() as client:
        found = client.set_pipeline_alias(name, alias, body)
    show(found, told, as_json=as_json)


@app.command("unalias")
def remove_alias(
    name: PipelineArgument,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="An alias of the pipeline.")],
    as_json: JsonOption = False,
) -> None:
    """Remove an alias with its canary."""
    with connect() as client:
        client.remove_pipeline_alias(name, alias)
    show({"pipeline": name, "alias": alias, "removed": True}, f"{name}@{alias} is removed", as_json=as_json)


@app.command()
def remove(name: PipelineArgument, as_json: JsonOption = False) -> None:
    """Delete a pipeline with all its versions. Jobs keep their steps."""
    with connect() as client:
        found = client.delete_pipeline(name)
    show(found, f"{name} is deleted", as_json=as_json)


def _inputs(pipeline: Json) -> list[str]:
    declared = pipeline["input_schema"].get("properties")
    return list(declared) if isinstance(declared, dict) else []
