"""``headrace up``: the local stack in the foreground, until a signal ends it."""

import json
import os
from typing import Annotated

import typer

from cli import render
from cli.local.stack import Stack, running_stack
from cli.local.stopping import hear_stop_signals, pause
from cli.render import say
from store.child_process import descendants
from store.registry.models import ModelVersion
from store.settings import load_settings

_TEND_S = 0.2


def up(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A registered name, smollm2 or minilm, or a folder in the Hugging Face layout. Repeatable: one worker "
            "for each; default: smollm2."
        ),
    ] = None,
) -> None:
    """Run everything on this machine until Ctrl-C, SIGTERM or a closed terminal."""
    models = model or ["smollm2"]
    settings = load_settings()
    hear_stop_signals()
    try:
        with running_stack(settings, models, say) as stack:
            _run(stack)
    except KeyboardInterrupt:
        left = descendants(os.getpid())
        say(f"stopped; {f'left running: {sorted(left)}' if left else 'no process left'}")


def _run(stack: Stack) -> None:
    """Supervise the stack's processes until it must stop."""
    _show(stack)
    try:
        while True:
            stack.supervisor.tend()
            pause(_TEND_S)
    finally:
        say("stopping")


def example(api_url: str, api_key: str, model: ModelVersion) -> str:
    """Return an example command for this model's task."""
    task = model.spec
    if task.url_example is not None:
        body = json.dumps({"model": model.model, **task.url_example})
        return (
            f"curl -s {api_url}{task.urls[0]} -H 'Authorization: Bearer {api_key}' "
            f"-H 'Content-Type: application/json' -d '{body}'"
        )
    return f'headrace submit "Why is the sky blue?" --model {model.model} --stream'


def _show(stack: Stack) -> None:
    """Print the addresses and an example on stdout."""
    of_each_task = {model.task: model for model in reversed(stack.models)}
    lines = [
        ("API", f"{stack.api_url}  (docs at /docs)"),
        ("key", stack.api_key),
        ("Flower", f"{stack.flower_url}  (user {stack.flower_user}, password {stack.flower_password})"),
        ("model", ", ".join(model.model for model in stack.models)),
        *(("try", example(stack.api_url, stack.api_key, model)) for model in reversed(of_each_task.values())),
    ]
    for name, value in lines:
        render.out.print(f"{name:>7}", style="bold", end="  ")
        render.out.print(value, soft_wrap=True)
    render.out.print("ready; Ctrl-C stops everything")
