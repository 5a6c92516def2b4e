"""A live server and a worker process: the example's recommendations, and an answer after a worker's death."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from examples.recommendation.recommend import recommended, report
from examples.recommendation.shop import items, visits
from examples.recommendation.train import hit_rate, most_clicked, train
from headrace.client import Client
from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.e2e.test_embeddings import worker
from tests.processes import StartProcess, wait_for
from tests.producer_api.serving import serving
from tests.workers.conftest import Bench, Duties

SCOPES = ["jobs:write", "jobs:read"]


@pytest.mark.full
def test_the_trained_shop_recommends_better_than_the_most_clicked_items(
    settings: Settings, db: Database, tmp_path: Path, start_process: StartProcess
) -> None:
    shop = items(60, seed=1)
    known, judged = visits(600, shop, seed=1), visits(40, shop, seed=2)
    train(tmp_path / "model", shop, known, epochs=4, seed=1)
    register(db, "shop", str(tmp_path / "model"), "auto", actor="tests")
    key = api_keys.create_key(db, api_keys.create_tenant(db, "acme"), "tests", SCOPES, actor="tests")
    with (
        serving(settings) as server,
        Client(server.url, key) as client,
        worker(start_process, settings, "shop", device="cpu"),
    ):
        found = recommended(client, "shop", judged)
        said = report(client, "shop", judged[:1])
        lost = client.submit(task="recommend", model="shop", input={"history": [{"id": "gone"}]})
        failed = client.wait(lost["id"])
    assert hit_rate(found, judged) > hit_rate([most_clicked(known)] * len(judged), judged)
    assert '"in_stock": true' in said
    assert '"in_stock": false' not in said
    assert failed["status"] == "failed"
    assert "history" in (failed["error"] or {})["message"]


@pytest.mark.full
def test_a_caller_gets_its_items_although_the_worker_dies(
    settings: Settings, db: Database, start_process: StartProcess
) -> None:
    bench = Bench(db, settings, register(db, "shop", "fake-recommender", "auto", actor="tests"))
    duties = Duties(bench)
    duties.start()
    key = api_keys.create_key(db, bench.tenant_id, "tests", SCOPES, actor="tests")
    body = {"model": "shop", "history": [{"id": "item-1"}, {"id": "gone"}], "top_k": 5}
    with ThreadPoolExecutor(1) as caller, serving(settings) as server, Client(server.url, key) as client:
        with worker(start_process, settings, "shop", fake_step_ms=60_000) as first:
            asked = caller.submit(client.request, "POST", "/v1/recommendations", json=body)
            wait_for(lambda: bench.query("SELECT FROM jobs WHERE state = 'running'"), "the job runs")
            first.signal(signal.SIGKILL)
            first.wait_exit()
            bench.end_leases()
        with worker(start_process, settings, "shop"):
            answer = asked.result(90)
    duties.stop()
    assert len(answer["items"]) == 5
    assert "item-1" not in {one["id"] for one in answer["items"]}
    assert answer["unknown_ids"] == ["gone"]
    (job,) = bench.query("SELECT state, attempt, crashes FROM jobs")
    assert tuple(job) == (JobState.SUCCEEDED, 2, 1)
    bench.close()
