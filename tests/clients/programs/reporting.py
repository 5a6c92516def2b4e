"""Helpers of the programs in this folder: register features, run them in order, check the jobs behind them.

Uses only the standard library and the environment of every OpenAI client: OPENAI_BASE_URL and OPENAI_API_KEY.
"""

import inspect
import json
import os
import sys
import time
import traceback
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

MODEL = "smollm2"
ENCODER = "minilm"
CAPITAL = "What is the capital of France?"
LONG_ANSWER = "Write a long story about a water mill and its miller."
TOO_LONG = "water " * 12_000

BASE_URL = os.environ["OPENAI_BASE_URL"]
CUTTING_URL = os.environ["CUTTING_BASE_URL"]
"""The same server behind a proxy that drops the first answer to every request."""

_features: list[tuple[str, Callable[[], Any]]] = []


def feature(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register a function, plain or async, as the test of a feature; an exception is a failure."""

    def note(proof: Callable[[], Any]) -> Callable[[], Any]:
        _features.append((name, proof))
        return proof

    return note


def main(run_async: Callable[[Any], object]) -> None:
    """Run all of them; print a line of JSON for each. ``run_async`` runs a coroutine, as ``asyncio.run`` does."""
    only = sys.argv[1:]
    for name, proof in _features:
        if only and not any(word in name for word in only):
            continue
        began, error = time.monotonic(), None
        try:
            result = proof()
            if inspect.iscoroutine(result):
                run_async(result)
        except BaseException:
            error = traceback.format_exc(limit=-4)
        line = {"feature": name, "error": error, "took_s": round(time.monotonic() - began, 2)}
        print(json.dumps(line), flush=True)


def new_run() -> dict[str, str]:
    """Metadata that identifies a job."""
    return {"run": uuid.uuid4().hex}


def jobs_of(run: dict[str, str]) -> list[dict[str, Any]]:
    """The jobs with this metadata."""
    query = urllib.parse.urlencode({f"metadata[{name}]": value for name, value in run.items()})
    return list(_get(f"jobs?{query}")["data"])


def _get(path: str) -> Any:
    request = urllib.request.Request(
        f"{BASE_URL}/{path}", headers={"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def wait_for_state(job_id: str, state: str) -> None:
    """Wait until the job has ended, as it must."""
    deadline = time.monotonic() + 20
    while (found := _get(f"jobs/{job_id}")["status"]) in ("queued", "running"):
        assert time.monotonic() < deadline, f"the job still is {found}"
        time.sleep(0.05)
    assert found == state, found


def wait_until_cancelled(run: dict[str, str]) -> None:
    """Wait until the job with this metadata is cancelled before the end of its output."""
    deadline = time.monotonic() + 20
    while True:
        (job,) = jobs_of(run)
        if job["status"] not in ("queued", "running"):
            break
        assert time.monotonic() < deadline, f"the job still is {job['status']}"
        time.sleep(0.05)
    assert job["status"] == "cancelled", job["status"]


def assert_one_job_succeeded(run: dict[str, str]) -> None:
    """A retried request created no second job."""
    assert [job["status"] for job in jobs_of(run)] == ["succeeded"], jobs_of(run)
