"""How large a promise's run is, and where its figures go."""

import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

Report = Callable[..., None]


@pytest.fixture
def is_full(request: pytest.FixtureRequest) -> bool:
    """True if the run has the full size of the promise, not the small everyday size."""
    return bool(request.config.getoption("--full"))


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Write a promise's figures: ``report("P1", seed=7, lost=0, …)``, also printed with ``pytest -s``."""
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
