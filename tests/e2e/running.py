"""A local stack on the real model, for the tests of this folder and for third-party clients."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from openai import OpenAI

from headrace.cli.local.home import Home, StackRecord
from headrace.cli.local.stack import Stack, running_stack
from headrace.models.catalog import CATALOG, fetch
from headrace.store.settings import Settings
from tests.folders import reachable_folder
from tests.processes import free_port

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Running:
    """A stack that serves SmolLM2. ``client``: the official one without retries, so that errors show."""

    stack: Stack
    home: Home
    record: StackRecord
    client: OpenAI

    def flower(self, path: str) -> httpx2.Response:
        """A page of Flower."""
        auth = (self.stack.flower_user, self.stack.flower_password)
        return httpx2.get(self.stack.flower_url + path, auth=auth, timeout=60).raise_for_status()


@contextmanager
def running_smollm2(
    changes: Mapping[str, str], say: Callable[[str], None] = lambda _: None, beside: Sequence[str] = ()
) -> Iterator[Running]:
    """Yield a stack in its own folder, with the real model and kernels, prepared if missing.

    ``changes``: settings for its processes; ``beside``: other models of `headrace up` that it also serves.
    """
    models = REPOSITORY / ".headrace" / "models"
    for name in ("smollm2", *beside):
        if name in CATALOG:
            fetch(name, models)
    kernels = REPOSITORY / ".headrace" / "native"
    kernels.mkdir(exist_ok=True)
    with reachable_folder() as folder:
        (folder / "models").symlink_to(models)
        (folder / "native").symlink_to(kernels)
        settings = Settings(home=folder, api_port=free_port(), flower_port=free_port(), worker_metrics_port=free_port())
        with running_stack(settings, ["smollm2", *beside], say, changes) as stack:
            home = Home(folder)
            record = home.record()
            assert record is not None
            with OpenAI(base_url=f"{stack.api_url}/v1", api_key=stack.api_key, max_retries=0) as client:
                yield Running(stack, home, record, client)
