"""``headrace tools``: the tools that the server calls for models, by the API."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.client.http_client import OperatorClient
from headrace.cli.client.object_files import read_object
from headrace.cli.client.verbs import connect
from headrace.cli.groups import noun
from headrace.cli.render import Json, JsonOption, show, table
from headrace.store.errors import NotFound

app = noun("Tools that the server calls: list, put, delete.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A tool's name.")]


@app.command("list")
def list_all(as_json: JsonOption = False) -> None:
    """List the tools, without the values of their headers."""
    with connect() as client:
        found = client.tools()
    rows = [(one["name"], _way(one), ", ".join(one["headers"]), f"{one['timeout_ms']} ms", one["id"]) for one in found]
    told = table("tool", "url", "headers", "deadline", "id", rows=rows) if found else "no tools: `headrace tools put`"
    show(found, told, as_json=as_json)


@app.command()
def put(
    name: NameArgument,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The definition, JSON or YAML; - is stdin.")
    ] = None,
    mcp: Annotated[
        str | None, typer.Option("--mcp", metavar="URL", help="A server of MCP, which tells its tools itself.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Create a tool, or replace the definition of the one with this name.

    The file is as in the API: {"url": "https://…", "description": "…", "parameters": {…}, "headers": {…}}. With --mcp
    no file is needed; it may have {"headers": {…}, "only": […]}. {"type": "mcp", "command": "NAME"} is a server
    over stdio, by the operator's name of it. The same command again asks the server again.
    """
    if file is None and mcp is None:
        raise typer.BadParameter("give a FILE with the definition, or --mcp URL", param_hint="FILE")
    definition = {} if file is None else read_object(file)
    if mcp is not None:
        definition |= {"type": "mcp", "url": mcp}
    with connect() as client:
        before = _named(client, name)
        if before is None:
            found = client.create_tool({**definition, "name": name})
        else:
            found = client.replace_tool(before["id"], definition)
    has = f", with {', '.join(one['name'] for one in found['tools'])}" if found.get("tools") else ""
    show(found, f"{name} is stored as {found['id']}{has}", as_json=as_json)


@app.command()
def delete(name: NameArgument, as_json: JsonOption = False) -> None:
    """Delete a tool."""
    with connect() as client:
        found = _named(client, name)
        if found is None:
            raise NotFound(f"no tool {name}: `headrace tools` lists them")
        client.delete_tool(found["id"])
    show({"name": name, "deleted": True}, f"{name} is deleted", as_json=as_json)


def _way(tool: Json) -> str:
    return tool["url"] or f"command {tool['command']}"


def _named(client: OperatorClient, name: str) -> Json | None:
    return next((one for one in client.tools() if one["name"] == name), None)
