"""The Headrace that an example works with: one that runs, or one that is started for this time."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from headrace.cli.local.stack import running_stack
from headrace.store.settings import load_settings


@dataclass(frozen=True)
class Server:
    """An address such as ``http://127.0.0.1:8000``, and a key."""

    url: str
    key: str


@contextmanager
def headrace(*models: str, **changes: str) -> Iterator[Server]:
    """Yield the Headrace of HEADRACE_API_URL and HEADRACE_API_KEY; without them start one that serves ``models``.

    ``changes``: settings of the one that is started, such as HEADRACE_MAX_SLOTS. Raises Unavailable if it cannot start,
    for example because ``headrace up`` runs in this folder: then give its address and key.
    """
    url = os.environ.get("HEADRACE_API_URL")
    if url:
        yield Server(url, os.environ["HEADRACE_API_KEY"])
        return
    with running_stack(load_settings(), models, _say, changes) as stack:
        yield Server(stack.api_url, stack.api_key)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
