"""A live server and a worker process: predictions by the route, natively, and after a worker's death."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import torch

from examples.fraud_scoring.score import predictions, report
from examples.fraud_scoring.train import area_under_roc, divided, tensors, train
from headrace.client import Client
from headrace.features.predict.feature_schema import encode_rows, read_config
from headrace.features.predict.inputs import TabularConfig
from headrace.features.predict.task import EXPLAINED_COST
from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.e2e.test_embeddings import calling, worker
from tests.processes import StartProcess, wait_for
from tests.producer_api.serving import serving
from tests.workers.conftest import Bench, Duties


@pytest.mark.full
def test_predictions_by_the_route_and_natively(
    settings: Settings, db: Database, tmp_path: Path, start_process: StartProcess
) -> None:
    first, later = divided(1500, seed=1)
    network = train(tmp_path / "model", first, epochs=1, seed=1)
    config = read_config(TabularConfig, (tmp_path / "model" / "config.json").read_bytes())
    register(db, "fraud", str(tmp_path / "model"), "auto", actor="tests")
    rows = [one.row for one in later]
    with torch.no_grad():
        expected = network(*tensors(encode_rows(config, rows))).sigmoid().tolist()
    key = api_keys.create_key(
        db, api_keys.create_tenant(db, "acme"), "tests", ["jobs:write", "jobs:read"], actor="tests"
    )
    with (
        serving(settings) as server,
        Client(server.url, key) as client,
        worker(start_process, settings, "fraud", device="cpu"),
    ):
        answer = client.request(
            "POST", "/v1/tabular/predictions", json={"model": "fraud", "rows": rows[:5], "explain": True}
        )
        native = predictions(client, "fraud", rows)
        said = report(client, "fraud", later)
    assert [one["score"] for one in native] == pytest.approx(expected, abs=1e-6)
    assert answer["usage"] == {"rows": 5, "total_tokens": 5 * EXPLAINED_COST}
    assert answer["model"] == "fraud@1"
    for one, alone in zip(answer["predictions"], native[:5], strict=True):
        explanation = one.pop("explanation")
        parts = explanation["contributions"]
        assert parts.keys() == config.names
        assert sum(parts.values()) == pytest.approx(one["score"] - explanation["baseline"], abs=1e-3)
        assert one["label"] == ("fraud" if one["score"] >= 0.5 else "legitimate")
        assert one["score"] == pytest.approx(alone["score"], abs=1e-6)
    assert f"{area_under_roc(expected, later):.3f}" in said


@pytest.mark.full
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
            bench.end_leases()
        with worker(start_process, settings, "fraud"):
            answer = asked.result(90).json()
    duties.stop()
    assert len({one["score"] for one in answer["predictions"]}) == 20
    (job,) = bench.query("SELECT state, attempt, crashes FROM jobs")
    assert tuple(job) == (JobState.SUCCEEDED, 2, 1)
    bench.close()
