"""``headrace host``: runs the model host of one machine."""

from typing import Annotated

import typer

from headrace.cli.operator.processes import become, words
from headrace.store.errors import InvalidRequest


def host(
    memory: Annotated[
        str | None, typer.Option(help="Memory for all workers of this host, such as 4GiB: a place for each version.")
    ] = None,
    autoscale: Annotated[
        bool, typer.Option("--autoscale", help="As many workers as the dispatcher decides (HEADRACE_AUTOSCALE).")
    ] = False,
    sleep_memory: Annotated[
        str | None, typer.Option(help="Main memory for vLLM servers that sleep while they have no place.")
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="NAME or NAME@VERSION, with commas; by default all registered models.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the host; by default the machine's.")] = None,
) -> None:
    """Run a model host: it starts and drains workers by what waits (docs/many-models.md, docs/autoscaling.md)."""
    if (memory is None) != autoscale:
        raise InvalidRequest("give --memory for many models in a budget, or --autoscale for many workers of a model")
    given = words({"--memory": memory, "--sleep-memory": sleep_memory, "--models": models, "--name": name})
    become("headrace.features.hosts", *given, *(["--autoscale"] if autoscale else []))
