"""``headrace tools``: the tools that the server calls for models, by the API."""

from pathlib import Path
from typing import Annotated

import typer

from cli.client.http_client import OperatorClient
from cli.client.verbs import connect, read_object
from cli.groups import noun
from cli.render import Json, JsonOption, show, table
from store.errors import NotFound

app = noun("Tools that the server calls: list, put, delete.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A tool's name.")]


@app.command("list")
def list_all(as_json: JsonOption = False) -> None:
    """List the tools, without the values of their headers."""
    with connect() as client:
        found = client.tools()
    rows = [(one["name"], one["url"], ", ".join(one["headers"]), f"{one['timeout_ms']} ms", one["id"]) for one in found]
    told = table("tool", "url", "headers", "deadline", "id", rows=rows) if found else "no tools: `headrace tools put`"
    show(found, told, as_json=as_json)


@app.command()
def put(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The definition as JSON; - is stdin.")],
    as_json: JsonOption = False,
) -> None:
    """Create a tool, or replace the definition of the one with this name.

    The file is as in the API: {"url": "https://…", "description": "…", "parameters": {…}, "headers": {…}}.
    """
    definition = read_object(file)
    with connect() as client:
        before = _named(client, name)
        if before is None:
            found = client.create_tool({**definition, "name": name})
        else:
            found = client.replace_tool(before["id"], definition)
    show(found, f"{name} is stored as {found['id']}", as_json=as_json)


@app.command()
def delete(name: NameArgument, as_json: JsonOption = False) -> None:
    """Delete a tool."""
    with connect() as client:
        found = _named(client, name)
        if found is None:
            raise NotFound(f"no tool {name}: `headrace tools` lists them")
        client.delete_tool(found["id"])
    show({"name": name, "deleted": True}, f"{name} is deleted", as_json=as_json)


def _named(client: OperatorClient, name: str) -> Json | None:
    return next((one for one in client.tools() if one["name"] == name), None)
