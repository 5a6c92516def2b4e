"""A stack on SmolLM2 for each file of this folder, gone before the tests of other folders."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.local.home import Home
from cli.local.stack import running_stack
from models.catalog import fetch
from store.settings import Settings
from tests.e2e.running import Running
from tests.folders import reachable_folder

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    models = fetch("smollm2", REPOSITORY / ".headrace" / "models").parent
    kernels = REPOSITORY / ".headrace" / "native"
    kernels.mkdir(exist_ok=True)
    # The reference is float32.
    changes = {"HEADRACE_LEASE_S": "5", "HEADRACE_SWEEP_S": "0.5", "HEADRACE_DTYPE": "float32"}
    with reachable_folder() as folder:
        (folder / "models").symlink_to(models)
        (folder / "native").symlink_to(kernels)
        settings = Settings(home=folder, api_port=0, flower_port=5598, lease_s=5, sweep_s=0.5)
        with running_stack(settings, ["smollm2"], lambda _: None, changes) as stack:
            home = Home(folder)
            record = home.record()
            assert record is not None
            yield Running(stack, home, record)
