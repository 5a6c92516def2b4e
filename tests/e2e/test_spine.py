"""The main job on real parts: a local stack on the real model, the official client, and faults under mixed jobs."""

import argparse
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from benchmarks import trial
from cli.local.home import Home, StackRecord
from cli.local.stack import Stack, running_stack
from models.catalog import fetch
from store.settings import Settings

REPOSITORY = Path(__file__).parents[2]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@dataclass(frozen=True)
class Running:
    """A stack that serves SmolLM2."""

    stack: Stack
    home: Home
    record: StackRecord

    @property
    def client(self) -> OpenAI:
        """The official client, with no retries to hide anything."""
        return OpenAI(base_url=f"{self.stack.api_url}/v1", api_key=self.stack.api_key, max_retries=0)

    def flower(self, path: str) -> Any:
        """A page of Flower."""
        auth = (self.stack.flower_user, self.stack.flower_password)
        return httpx2.get(self.stack.flower_url + path, auth=auth, timeout=30).raise_for_status()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    models = fetch("smollm2", REPOSITORY / ".headrace" / "models").parent
    folder = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
    folder.chmod(0o711)  # as root, PostgreSQL runs as nobody and must get in
    (folder / "models").symlink_to(models)
    settings = Settings(home=folder, api_port=0, flower_port=5598, lease_s=5, sweep_s=0.5)
    changes = {"HEADRACE_LEASE_S": "5", "HEADRACE_SWEEP_S": "0.5"}
    try:
        with running_stack(settings, ["smollm2"], lambda _: None, changes) as stack:
            home = Home(folder)
            record = home.record()
            assert record is not None
            yield Running(stack, home, record)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_the_official_client_gets_the_same_answer_whole_and_streamed(running: Running) -> None:
    asked: dict[str, Any] = {"model": "smollm2", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    whole = running.client.chat.completions.create(**asked)
    streamed = running.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(streamed)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert whole.model == "smollm2@1"


@pytest.mark.parametrize(("fault", "jobs", "check"), [("none", 24, 12), ("kill-worker", 32, 0), ("flush-redis", 32, 0)])
def test_mixed_jobs_each_end_once_whatever_breaks(running: Running, fault: str, jobs: int, check: int) -> None:
    args = argparse.Namespace(jobs=jobs, concurrency=16, fault=fault, check=check)
    report = trial.run(running.stack, running.record, running.home, args)
    assert report.broken == []
    assert report.succeeded == jobs
    assert report.duplicate_terminal == 0
    if check:
        assert report.greedy_equal == f"{check} of {check}"


def test_flower_shows_engine_statistics_and_tasks_by_model_version(running: Running) -> None:
    running.client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=4)  # type: ignore[arg-type]
    workers = running.flower("/api/workers?refresh=1").json()
    live = [info["stats"]["pool"] for info in workers.values() if info.get("stats")]
    assert any(pool["model version"] == "smollm2@1" and pool["engine steps"] > 0 for pool in live)
    names = {task["name"] for task in running.flower("/api/tasks?limit=5").json().values()}
    assert names == {"generate:smollm2@1"}


def test_flower_is_closed_without_its_password(running: Running) -> None:
    for path in ("/workers", "/tasks", "/api/tasks"):
        assert httpx2.get(running.stack.flower_url + path, timeout=30).status_code == 401


def test_metrics_count_what_was_accepted(running: Running) -> None:
    text = httpx2.get(f"{running.stack.api_url}/metrics", timeout=10).text
    found = re.search(r'headrace_\w*accepted\w*\{[^}]*model="smollm2"[^}]*\} (\d+)', text)
    assert found is not None, text[:2000]
    assert int(found[1]) > 0
