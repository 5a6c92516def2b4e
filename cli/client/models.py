"""Commands for the versions of models and their aliases."""

from typing import Annotated

import typer

from headrace.cli import render
from headrace.cli.client.verbs import connect
from headrace.cli.render import JsonOption, show
from headrace.store.errors import InvalidRequest, NotFound

ModelArgument = Annotated[str, typer.Argument(metavar="NAME", help="A model's name.")]
AliasArgument = Annotated[str, typer.Argument(metavar="ALIAS", help="default, stable or a name of your own.")]
NumberArgument = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The number of a version.")]
VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="A version, such as smollm2@1.")]


def show_model(name: ModelArgument, as_json: JsonOption = False) -> None:
    """Show the versions of a model: state, aliases, engine, digest, workers and waiting jobs."""
    with connect() as client:
        found = client.model_versions(name)
    if not found:
        raise NotFound(f"no model {name!r}: `headrace models` lists them", code="model_not_found")
    show(found, render.versions_table(found), as_json=as_json)


def set_prompt(
    version: VersionArgument,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="A prompt of your tenant: name, name@2 or name@alias.")
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="The version without a default template.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Register the next version: the same weights with a default template, whose messages come before each request.

    `headrace models prompt smollm2@1 guide@2`, then `headrace rollout start smollm2 --to 2` compares the two. The
    workers of smollm2@1 run both. A prompt without a version is that of its alias default, else the newest.
    """
    if none == (prompt is not None):
        raise InvalidRequest("give a prompt, or --none", param="prompt")
    reference = None if prompt is None else {"id": prompt}
    with connect() as client:
        made = client.register_version(version.rpartition("@")[0], {"files_of": version, "prompt": reference})
    with_what = render.template_text(made["template"]) or "no template"
    runs = f", run by the workers of {made['base']}" if made["shares_weights"] else ""
    show(made, f"{made['id']} has {with_what}{runs}", as_json=as_json)


def set_alias(
    name: ModelArgument,
    alias: AliasArgument,
    version: NumberArgument,
    force: Annotated[bool, typer.Option("--force", help="Also if a rollout of the version was rolled back.")] = False,
    expected: Annotated[
        int | None, typer.Option(min=0, help="Only if the alias names this version now; 0: only if it does not exist.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Let an alias name a version. `headrace models alias NAME default 2` makes version 2 what NAME means.

    New jobs of all tenants follow within two seconds; accepted jobs keep the version that they have.
    """
    with connect() as client:
        found = client.set_alias(name, alias, version, force=force, expected=expected)
    show(found, f"{name}@{alias} means {name}@{version}", as_json=as_json)


def remove_alias(name: ModelArgument, alias: AliasArgument, as_json: JsonOption = False) -> None:
    """Remove an alias other than default."""
    with connect() as client:
        client.remove_alias(name, alias)
    show({"model": name, "alias": alias, "removed": True}, f"{name}@{alias} is removed", as_json=as_json)


def retire(version: VersionArgument, as_json: JsonOption = False) -> None:
    """Retire a version that no alias names: it takes no new jobs. Waiting jobs are still run by its workers."""
    with connect() as client:
        found = client.retire_version(version)
    left = f"; {found['queued']} of its jobs wait" if found["queued"] else ""
    show(found, f"{version} is retired{left}", as_json=as_json)


def revive(version: VersionArgument, as_json: JsonOption = False) -> None:
    """Take a retired version back into use."""
    with connect() as client:
        found = client.revive_version(version)
    show(found, f"{version} takes jobs again", as_json=as_json)
