"""The demo with the model without weights: everything but the neural network is real."""

import subprocess
import sys

import pytest

from headrace.store.settings import child_environment
from tests.folders import reachable_folder
from tests.processes import free_port

pytestmark = pytest.mark.timeout(600)


def test_the_demo_shows_every_part_and_ends_with_nothing_left() -> None:
    argv = [sys.executable, "-m", "headrace.cli.main", "demo", "--model", "fake"]
    with reachable_folder() as home:
        ports = {f"HEADRACE_{name}_PORT": str(free_port()) for name in ("API", "FLOWER", "WORKER_METRICS")}
        env = child_environment({"HEADRACE_HOME": str(home), **ports})
        env = {name: value for name, value in env.items() if name not in ("DATABASE_URL", "REDIS_URL")}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "16 jobs submitted" in done.stderr
    assert "first token" in done.stderr
    assert "16 webhooks received" in done.stderr
    assert "none left" in done.stderr
    assert done.stdout.count("█") > 16
    assert "over time" in done.stdout
