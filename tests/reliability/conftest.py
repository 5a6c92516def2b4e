"""A server for the databases of many stacks, how large a run is, and where its figures go."""

import json
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from store.db import parse_url
from tests.conftest import Services
from tests.folders import reachable_folder
from tests.reliability.rig import ROOT, Databases, Stack
from tests.store.conftest import make_job, tenant

__all__ = ["make_job", "tenant"]

Report = Callable[..., None]


@pytest.fixture(scope="session")
def databases(services: Services) -> Iterator[Databases]:
    """A new database on the session's server for whoever asks."""
    server = create_engine(parse_url(services.database_url), pool_size=2)
    databases = Databases(server, services.redis_url)
    yield databases
    databases.close()
    server.dispose()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where processes keep their logs."""
    with reachable_folder() as folder:
        yield folder


@pytest.fixture
def stack(databases: Databases, folder: Path) -> Iterator[Stack]:
    """A stack of the test's own, with nothing running yet."""
    with databases.stack(folder) as stack:
        yield stack


@pytest.fixture
def is_full(request: pytest.FixtureRequest) -> bool:
    """True if the run shall be as large as the promise says, not as small as every day allows."""
    return bool(request.config.getoption("--full"))


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Write a promise's figures: ``report("P1", seed=7, lost=0, …)``, also as a line to whoever runs with -s."""
    began = time.monotonic()

    def write(promise: str, *, seed: int, **figures: Any) -> None:
        node = request.node.nodeid
        line = {
            "promise": promise,
            "seed": seed,
            "full": bool(request.config.getoption("--full")),
            "command": f"pytest {node}" + (" --full" if request.config.getoption("--full") else ""),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "versions": {name: version(name) for name in ("headrace", "celery", "redis", "psycopg")},
            "duration_s": round(time.monotonic() - began, 1),
            **figures,
        }
        target = ROOT / "build" / "reliability" / (f"{promise}.json" if line["full"] else f"{promise}.small.json")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(line) + "\n")
        print(json.dumps(line))  # noqa: T201 - the line is the run's result

    return write
