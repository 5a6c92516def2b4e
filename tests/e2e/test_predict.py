"""A live server and a worker process: predictions by the route, natively, and after a worker's death."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from models.catalog import register
from store.db.database import Database
from store.schema.job_states import JobState
from store.settings import Settings
from store.tasks.predict import EXPLAINED_COST
from store.tenants import api_keys
from tests.e2e.test_embeddings import calling, worker
from tests.models.runners.test_tabular import ROWS, build_tabular, reference
from tests.processes import StartProcess, wait_for
from tests.workers.conftest import Bench, Duties


def test_predictions_by_the_route_and_natively(
    settings: Settings, db: Database, tmp_path: Path, start_process: StartProcess
) -> None:
    folder = build_tabular(tmp_path / "model")
    register(db, "fraud", str(folder), "auto", actor="tests")
    expected = torch.tensor(reference(folder, ROWS)).sigmoid()[:, 0].tolist()
    body = {"model": "fraud", "rows": ROWS}
    with calling(settings, db, api_keys.create_tenant(db, "acme")) as client:

        def post(path: str, body: dict[str, Any], **headers: str) -> Any:
            return client.post(path, body=body, options={"headers": headers}, cast_to=httpx2.Response).json()

        with worker(start_process, settings, "fraud", device="cpu"):
            answer = post("/tabular/predictions", body | {"explain": True})
            native = post("/jobs", {"task": "predict", "model": "fraud", "input": {"rows": ROWS}}, Prefer="wait=20")
    predictions = answer["predictions"]
    assert [one["score"] for one in predictions] == pytest.approx(expected, abs=1e-6)
    for one in predictions:
        explanation = one.pop("explanation")
        assert sum(explanation["contributions"].values()) == pytest.approx(
            one["score"] - explanation["baseline"], abs=1e-3
        )
        assert one["label"] == ("fraud" if one["score"] >= 0.5 else "legitimate")
        assert sum(one["probabilities"].values()) == pytest.approx(1.0)
    assert native["output"]["predictions"] == predictions
    assert answer["usage"] == {"rows": len(ROWS), "total_tokens": len(ROWS) * EXPLAINED_COST}
    assert native["usage"]["input_tokens"] == len(ROWS)
    assert answer["model"] == "fraud@1"


def test_a_caller_gets_its_predictions_although_the_worker_dies(
    settings: Settings, db: Database, start_process: StartProcess
) -> None:
    bench = Bench(db, settings, register(db, "fraud", "fake-tabular", "auto", actor="tests"))
    duties = Duties(bench)
    duties.start()
    body = {"model": "fraud", "rows": [{"amount": number, "country": "ch"} for number in range(20)]}
    with ThreadPoolExecutor(1) as caller, calling(settings, db, bench.tenant_id) as client:
        ask = {"body": body, "cast_to": httpx2.Response}
        with worker(start_process, settings, "fraud", fake_step_ms=60_000) as first:
            asked = caller.submit(client.post, "/tabular/predictions", **ask)
            wait_for(lambda: bench.query("SELECT FROM jobs WHERE state = 'running'"), "the job runs")
            first.signal(signal.SIGKILL)
            first.wait_exit()
        with worker(start_process, settings, "fraud"):
            answer = asked.result(30).json()
    duties.stop()
    assert len({one["score"] for one in answer["predictions"]}) == 20
    (job,) = bench.query("SELECT state, attempt, crashes FROM jobs")
    assert tuple(job) == (JobState.SUCCEEDED, 2, 1)
    bench.close()
