"""``headrace prompts``: prompt templates of the organization, by the API."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.client.object_files import read_object
from headrace.cli.client.verbs import VarOption, connect, read_variables
from headrace.cli.groups import noun
from headrace.cli.render import Json, JsonOption, ago, show, table
from headrace.client import ResourceMissing

app = noun("Prompt templates: list, show, put, render, alias, delete.")

PromptArgument = Annotated[str, typer.Argument(metavar="NAME", help="A prompt's name or id; NAME@2, NAME@ALIAS.")]


@app.command("list")
def list_all(as_json: JsonOption = False) -> None:
    """List the prompts with their newest versions."""
    with connect() as client:
        found = client.prompts()
    rows = [
        (one["name"] or one["id"], str(one["version"]), ", ".join(_names(one)), ago(one["created_at"])) for one in found
    ]
    told = table("prompt", "version", "variables", "made", rows=rows) if found else "no prompts: `headrace prompts put`"
    show(found, told, as_json=as_json)


@app.command("show")
def show_one(prompt: PromptArgument, as_json: JsonOption = False) -> None:
    """Show a version of a prompt: its digest, aliases, variables and texts."""
    with connect() as client:
        found = client.prompt(prompt)
    lines = [
        f"{found['name'] or found['id']}@{found['version']}  {found['digest']}",
        *([f"aliases: {', '.join(found['aliases'])}"] if found["aliases"] else []),
        *([f"variables: {', '.join(_names(found))}"] if _names(found) else []),
        *([f"system: {found['instructions']}"] if found.get("instructions") else []),
        *[f"{one['role']}: {one['content']}" for one in found.get("messages") or ()],
        *([found["text"]] if found.get("text") else []),
    ]
    show(found, "\n".join(lines), as_json=as_json)


@app.command()
def put(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A prompt's name; it is made if there is none.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The template as JSON or YAML; - is stdin.")],
    as_json: JsonOption = False,
) -> None:
    """Store a template as the next version of a prompt.

    The file is as in the API: {"instructions": "You know {{ city }}.", "messages": [...], "variables": ["city"]}.
    """
    template = read_object(file)
    with connect() as client:
        try:
            found = client.add_prompt_version(name, template)
        except ResourceMissing:
            found = client.create_prompt({**template, "name": name})
    show(found, f"{name}@{found['version']} is stored", as_json=as_json)


@app.command()
def render(
    prompt: PromptArgument,
    variables: VarOption = None,
    model: Annotated[str | None, typer.Option(help="Also show this model's text and tokens.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a prompt makes of these values. Nothing is stored or computed."""
    with connect() as client:
        found = client.render_prompt(prompt, {"model": model, "variables": read_variables(variables)})
    lines = [f"{one['role']}: {one['content']}" for one in found["messages"] or ()]
    if found["text"] is not None:
        lines += ["", found["text"]] if lines else [found["text"]]
    if found["input_tokens"] is not None:
        lines.append(f"\n{found['input_tokens']} tokens")
    show(found, "\n".join(lines), as_json=as_json)


@app.command("alias")
def set_alias(
    name: PromptArgument,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="default, or a name of your own.")],
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The number of a version.")],
    as_json: JsonOption = False,
) -> None:
    """Let an alias name a version; `default` is what NAME means. The next request uses it."""
    with connect() as client:
        found = client.set_prompt_alias(name, alias, version)
    show(found, f"{name}@{alias} means {name}@{version}", as_json=as_json)


@app.command("unalias")
def remove_alias(
    name: PromptArgument,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="An alias of the prompt.")],
    as_json: JsonOption = False,
) -> None:
    """Remove an alias."""
    with connect() as client:
        client.remove_prompt_alias(name, alias)
    show({"prompt": name, "alias": alias, "removed": True}, f"{name}@{alias} is removed", as_json=as_json)


@app.command()
def delete(name: PromptArgument, as_json: JsonOption = False) -> None:
    """Delete a prompt with all its versions. Jobs keep what they were given."""
    with connect() as client:
        found = client.delete_prompt(name)
    show(found, f"{name} is deleted", as_json=as_json)


def _names(prompt: Json) -> list[str]:
    declared = prompt.get("variables") or ()
    return list(declared.get("properties", ()) if isinstance(declared, dict) else declared)
