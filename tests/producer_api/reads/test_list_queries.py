"""ListQueries are read apart from what submissions and polls use, for a bounded time, and count as requests."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import redis
from sqlalchemy import Connection, text

from headrace.producer_api.reads import list_queries
from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from tests.cases import of
from tests.producer_api.calling import PROMPT, error_of, submit
from tests.producer_api.serving import serving

LISTS = (
    "/v1/jobs",
    *of("batches", "/v1/batches"),
    "/v1/files",
    "/v1/dead_letters",
    *of("webhooks", "/v1/webhook_deliveries"),
    *of("templates", "/v1/prompts"),
    "/v1/pipelines",
    *of("audit", "/v1/organization/audit_logs"),
)


def client(url: str, key: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def slow_lists(tenant: str, monkeypatch: pytest.MonkeyPatch, wait: Callable[[Connection], object]) -> None:
    """Make every list of jobs of the tenant hold its connection until ``wait`` returns."""
    list_jobs = jobs.list_jobs

    def list_slowly(db: Database, tenant_id: str, **filters: object) -> object:
        if tenant_id == tenant:
            with db.autocommit(tenant_id=tenant_id) as connection:
                wait(connection)
        return list_jobs(db, tenant_id, **filters)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs, "list_jobs", list_slowly)


@pytest.mark.usefixtures("model")
def test_lists_that_take_long_hold_up_nothing_else(
    settings: Settings, key: str, other_key: str, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[Connection] = []
    is_running, may_end = threading.Event(), threading.Event()

    def wait(connection: Connection) -> None:
        began.append(connection)
        is_running.set()
        assert may_end.wait(60)

    slow_lists(tenant, monkeypatch, wait)
    # Of those that wait, none is given up while the others are asked.
    monkeypatch.setattr(list_queries, "PATIENCE_S", 60.0)
    with (
        serving(settings) as server,
        client(server.url, key) as api,
        client(server.url, other_key) as other,
        ThreadPoolExecutor(30) as pool,
    ):
        try:
            slow = [pool.submit(api.get, "/v1/jobs") for _ in range(30)]
            assert is_running.wait(60)
            job_id = submit(api)
            assert other.get("/v1/jobs").json()["data"] == []
            assert api.get(f"/v1/jobs/{job_id}").status_code == 200
            assert len(began) == 1, "of a tenant one list runs at a time"
        finally:
            may_end.set()
        answers = [each.result() for each in slow]
    assert job_id in {job["id"] for answer in answers if answer.status_code == 200 for job in answer.json()["data"]}


@pytest.mark.usefixtures("model")
def test_lists_that_take_too_long_are_given_up(
    settings: Settings, key: str, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_lists(tenant, monkeypatch, lambda connection: connection.execute(text("SELECT pg_sleep(60)")))
    with (
        serving(settings.model_copy(update={"list_timeout_s": 1.0})) as server,
        client(server.url, key) as api,
        ThreadPoolExecutor(10) as pool,
    ):
        answers = list(pool.map(api.get, ["/v1/jobs"] * 10))
    assert {(answer.status_code, error_of(answer)["code"]) for answer in answers} == {(503, "list_timeout")}
    said = [error_of(answer)["message"] for answer in answers]
    assert any("1 s" in each and "`created_after`" in each for each in said)
    assert any("one list" in each for each in said), "those that waited for others, and not to the end"
    assert answers[0].headers["retry-after"] == "1"


def test_a_list_counts_as_a_request(
    settings: Settings, key: str, model: ModelVersion, redis_client: redis.Redis
) -> None:
    with (
        # The one of a minute comes back after a minute, and at once when Redis is emptied.
        serving(settings.model_copy(update={"requests_per_minute": 1})) as server,
        client(server.url, key) as api,
    ):
        for path in LISTS:
            redis_client.flushdb()
            answer = api.get(path)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        refused = api.get("/v1/jobs")
        assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
        assert api.post("/v1/jobs", json=PROMPT | {"model": model.model}).status_code == 429
        # A poll is bounded by what it waits for.
        assert api.get("/v1/jobs/job_0").status_code == 404
