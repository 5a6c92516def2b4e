"""``headrace top``: the live figures in the terminal, as the console's Live page shows them."""

import itertools
import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.live import Live

from headrace.cli.client.http_client import OperatorClient
from headrace.cli.client.live_screen import LiveScreen
from headrace.cli.client.verbs import connect
from headrace.cli.render import Json, JsonOption, out, print_line, show, warn
from headrace.client import ClientError, RequestRefused

_RETRY_S = (0.5, 1.0, 2.0, 5.0)


def top(
    once: Annotated[bool, typer.Option("--once", help="Print the figures once, and end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show queues, workers and speeds as they change, until Ctrl-C.

    With --json each event is a line. A pipe or a file gets the figures once.
    """
    with connect() as client:
        if as_json and not once:
            _print_events(client)
        elif once or not sys.stdout.isatty():
            found = client.live()
            screen = LiveScreen(client.base_url)
            screen.take("history", found["history"])
            screen.take("live", found["state"])
            show(found, screen, as_json=as_json)
        else:
            _watch(client)


def _print_events(client: OperatorClient) -> None:
    try:
        for name, data in _events(client):
            if name == "lost":
                warn(f"{data['reason']}; it is tried again")
            else:
                print_line({"event": name, "data": data})
    except KeyboardInterrupt:
        return


def _watch(client: OperatorClient) -> None:
    screen = LiveScreen(client.base_url)
    with Live(screen, console=out, screen=True, auto_refresh=False) as live:
        try:
            for name, data in _events(client):
                if name == "lost":
                    screen.lost = data["reason"]
                screen.take(name, data)
                if name != "history":
                    live.refresh()
        except KeyboardInterrupt:
            return


def _events(client: OperatorClient) -> Iterator[tuple[str, Json]]:
    """Yield the events without an end; ``lost`` is one, with its reason. Raises RequestRefused."""
    failures = itertools.count()
    while True:
        try:
            for event in client.live_events():
                failures = itertools.count()
                yield event
        except RequestRefused:
            raise
        except ClientError as error:
            yield "lost", {"reason": error.message}
        time.sleep(_RETRY_S[min(next(failures), len(_RETRY_S) - 1)])
