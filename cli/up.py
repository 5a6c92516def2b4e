"""``headrace up``: the local stack in the foreground, until a signal ends it."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli import render
from headrace.cli.local.stack import ServerChoice, Stack, running_stack
from headrace.cli.local.stopping import hear_stop_signals, pause
from headrace.cli.render import say
from headrace.store.child_process import descendants
from headrace.store.errors import SettingsError
from headrace.store.machine import parse_memory
from headrace.store.registry.engine_spec import EngineKind, check_server_arguments
from headrace.store.registry.models import ModelVersion
from headrace.store.scale_bounds import parse_range
from headrace.store.settings import Settings, load_settings

_TEND_S = 0.2


def up(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A registered name, smollm2 or minilm, or a folder in the Hugging Face layout. Repeatable: one worker "
            "for each; default: smollm2."
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory for all workers, such as 4GiB: a model host serves all registered models in it, by what waits."
        ),
    ] = None,
    autoscale: Annotated[
        str | None,
        typer.Option(
            metavar="LEAST..MOST",
            help="Workers of each model, such as 0..4: as many as what waits needs (docs/autoscaling.md).",
        ),
    ] = None,
    engine: Annotated[
        EngineKind | None,
        typer.Option(help="The inference server that each worker starts; it is installed into the home folder."),
    ] = None,
    engine_python: Annotated[
        Path | None, typer.Option(help="Install nothing: the Python of an environment that has the server.")
    ] = None,
    server_arguments: Annotated[
        list[str] | None, typer.Argument(help="After --: arguments of the server, such as --max-model-len 4096.")
    ] = None,
) -> None:
    """Run everything on this machine until Ctrl-C, SIGTERM or a closed terminal."""
    models = model or ["smollm2"]
    settings = load_settings()
    server = server_choice(settings, engine, engine_python, server_arguments or [])
    if memory is not None and server is not None:
        raise SettingsError("--memory is for models on Headrace's own engine or registered servers: leave --engine out")
    scaled = _workers_of_each(autoscale, memory, server)
    _check_memory(memory)
    hear_stop_signals()
    try:
        with running_stack(settings, models, say, server=server, memory=memory, autoscale=scaled) as stack:
            _run(stack)
    except KeyboardInterrupt:
        left = descendants(os.getpid())
        say(f"stopped; {f'left running: {sorted(left)}' if left else 'no process left'}")


def _workers_of_each(given: str | None, memory: str | None, server: ServerChoice | None) -> str | None:
    """Return the range of the option, checked. Raises SettingsError."""
    if given is None:
        return None
    if memory is not None or server is not None:
        raise SettingsError("--autoscale is for workers of Headrace's own engine: leave --memory and --engine out")
    try:
        least, most = parse_range(given)
    except ValueError as error:
        raise SettingsError(f"--autoscale: {error}") from None
    return f"{least}..{most}"


def _check_memory(given: str | None) -> None:
    """Raise SettingsError unless the option is a size that a model host accepts."""
    if given is not None:
        try:
            parse_memory(given)
        except ValueError as error:
            raise SettingsError(f"--memory: {error}") from None


def server_choice(
    settings: Settings, engine: EngineKind | None, python: Path | None, arguments: list[str]
) -> ServerChoice | None:
    """Return the server that the options ask for. Raises SettingsError."""
    if engine in (None, EngineKind.NATIVE):
        if python or arguments:
            raise SettingsError("--engine-python and arguments after -- are for an inference server: give --engine too")
        return None
    if engine is EngineKind.OPENAI:
        raise SettingsError("`headrace up` starts no server of the kind openai: `headrace register --url` names yours")
    check_server_arguments(engine, arguments)
    return ServerChoice(engine, python or settings.engine_python, tuple(arguments))


def _run(stack: Stack) -> None:
    """Supervise the stack's processes until it must stop."""
    _show(stack)
    try:
        while True:
            stack.supervisor.tend()
            pause(_TEND_S)
    finally:
        say("stopping")


def example(api_url: str, api_key: str, name: str, model: ModelVersion) -> str:
    """Return an example command for the task of the model that requests call ``name``."""
    task = model.spec
    curl = f"curl -s {api_url}{task.urls[0]} -H 'Authorization: Bearer {api_key}'"
    if task.file_example is not None:
        return f"{curl} -F model={name} -F file=@{task.file_example}"
    if task.url_example is not None:
        body = json.dumps({"model": name, **task.url_example}, ensure_ascii=False)
        saved = "" if task.answer_file is None else f" -o {task.answer_file}"
        return f"{curl} -H 'Content-Type: application/json' -d '{body}'{saved}"
    return f'headrace submit "Why is the sky blue?" --model {name} --stream'


def _show(stack: Stack) -> None:
    """Print the addresses and an example on stdout."""
    of_each_task = {
        model.task: (name, model) for name, model in reversed([*zip(stack.names, stack.models, strict=True)])
    }
    lines = [
        ("API", f"{stack.api_url}  (docs at /docs, console at /console)"),
        ("key", stack.api_key),
        ("Flower", f"{stack.flower_url}  (user {stack.flower_user}, password {stack.flower_password})"),
        ("model", ", ".join(stack.names)),
        *(("try", example(stack.api_url, stack.api_key, *named)) for named in reversed(of_each_task.values())),
    ]
    for name, value in lines:
        render.out.print(f"{name:>7}", style="bold", end="  ")
        render.out.print(value, soft_wrap=True)
    render.out.print("ready; Ctrl-C stops everything")
