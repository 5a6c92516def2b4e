"""Health, metrics and documents, and what the API does while a service it stands on is away."""

import platform
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import httpx2
import pytest
import redis
import structlog
from prometheus_client.parser import text_string_to_metric_families

from headrace.cli.local.postgres import LocalPostgres
from headrace.migrations.roles import let_in
from headrace.migrations.schema import upgrade
from headrace.models.catalog import register
from headrace.producer_api.server.health import Health, HealthReport
from headrace.store.db.database import Database
from headrace.store.db.roles import ROLES
from headrace.store.registry.models import ModelVersion, register_version
from headrace.store.settings import Settings
from headrace.store.tasks.registry import TASKS
from headrace.store.tenants import api_keys
from tests.processes import wait_for
from tests.producer_api.calling import PROMPT, error_of, submit
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer, serving
from tests.refusals import Naming
from tests.roles import ROLE_PASSWORD
from tests.signals import audio_file, tone

NOWHERE = "redis://127.0.0.1:1/0"


def _samples(text: str, name: str) -> dict[tuple[str, ...], float]:
    """Return a metric's samples by the values of their labels, which are sorted by name."""
    families = text_string_to_metric_families(text)
    return {tuple(s.labels.values()): s.value for family in families for s in family.samples if s.name == name}


def _client(server: ApiServer, key: str) -> httpx2.Client:
    return httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def test_the_open_routes_need_no_key(api: httpx2.Client) -> None:
    with httpx2.Client(base_url=api.base_url, timeout=60) as anyone:
        assert anyone.get("/healthz").json() == {"status": "ok"}
        wait_for(lambda: anyone.get("/readyz").json()["status"] == "ready", "the hub is connected")
        assert anyone.get("/readyz").json() == {"status": "ready", "postgres": "ok", "redis": "ok", "streams": "ok"}
        assert anyone.get("/health").json() == anyone.get("/readyz").json()
        assert anyone.get("/version").json() == {
            "name": "headrace",
            "version": version("headrace"),
            "python": platform.python_version(),
        }
        assert anyone.get("/metrics").headers["content-type"].startswith("text/plain")
        assert "swagger" in anyone.get("/docs").text.lower()


@pytest.mark.whole
def test_the_document_names_key_errors_and_examples(api: httpx2.Client) -> None:
    document = api.get("/openapi.json").json()
    post = document["paths"]["/v1/jobs"]["post"]
    assert post["security"] == [{"HTTPBearer": ["jobs:write"]}]
    examples = post["requestBody"]["content"]["application/json"]["examples"]
    assert set(examples) == {
        "chat",
        "prompt",
        "steps",
        "vectors",
        "scores",
        "labels",
        "entities",
        "pairs",
        "predictions",
        "recommendations",
        "image labels",
        "labels in words",
        "transcript",
        "speech",
        "image_generate",
        "image_edit",
        "video_generate",
        "call_tool",
    }
    refusals = {status: answer for status, answer in post["responses"].items() if status != "202"}
    assert {"400", "401", "403", "404", "409", "413", "422", "429", "500", "503", "504"} <= set(refusals)
    for answer in refusals.values():
        assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"


def test_every_openai_route_is_documented_whole(api: httpx2.Client, subtests: pytest.Subtests) -> None:
    document = api.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    routes = [(path, route) for path, methods in document["paths"].items() for route in methods.values()]
    openai = [(path, route) for path, route in routes if "openai" in route["tags"]]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses"} <= {path for path, _ in openai}
    for path, route in openai:
        with subtests.test(f"{path}: {route['summary']}"):
            for status, answer in route["responses"].items():
                json_answer = answer.get("content", {}).get("application/json", {"schema": True})
                assert json_answer.get("schema"), f"{status} has no schema"
            if body := route.get("requestBody", {}).get("content", {}).get("application/json"):
                name = body["schema"].get("$ref", "").rpartition("/")[2]
                assert body.get("examples") or schemas[name].get("examples"), "its body has no example"


@pytest.fixture
def wide(db: Database, model: ModelVersion) -> str:
    """A model with a context window that fits a tool's description, at one token per byte."""
    fields = {"runner": "fake", "source": "fake:wide", "digest": "1" * 64, "dtype": "float32", "files": {}}
    register_version(db, model="wide", context_window=8192, actor="tests", **fields)
    return "wide"


def test_documented_examples_are_accepted(
    api: httpx2.Client, db: Database, redis_client: redis.Redis, wide: str, encoder: ModelVersion
) -> None:
    document = api.get("/openapi.json").json()
    examples = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    models = dict.fromkeys(("embed", "score", "image_zero_shot"), encoder.model)
    fakes = (
        "rerank",
        "classify",
        "token_classify",
        "image_classify",
        "predict",
        "recommend",
        "transcribe",
        "speech",
        "image_generate",
        "video_generate",
        "call_tool",
    )
    for task in filter(TASKS.__contains__, fakes):
        register(db, task, TASKS[task].fake_runner, "auto", actor="tests")
        models[task] = task
    models["image_edit"] = "image_generate"
    for example in examples.values():
        body = example["value"]
        if "steps" in body:
            body = body | {"steps": [step | {"model": "tiny"} for step in body["steps"]]}
        else:
            body = body | {"model": models.get(body.get("task"), "tiny")}
        if body.get("task") == "transcribe":
            sound = {"file": ("a.wav", audio_file(tone(1, 16_000)))}
            made = api.post("/v1/files", files=sound, data={"purpose": "user_data"})
            body = body | {"input": {"file_id": made.json()["id"]}}
        answer = api.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
    with ScriptedWorker(db, redis_client, f"{wide}@1").serve(lambda _: ["x"]):
        for body in document["components"]["schemas"]["ChatRequest"]["examples"]:
            answer = api.post("/v1/chat/completions", json=body | {"model": wide})
            assert answer.status_code == 200, answer.text


def test_metrics_count_what_happened(api: httpx2.Client) -> None:
    submit(api)
    api.post("/v1/jobs", json={})
    api.get("/v1/jobs/job_0")
    text = api.get("/metrics").text
    assert _samples(text, "headrace_jobs_accepted_total") == {("standard", "tiny", "false", "generate", "1"): 1}
    assert _samples(text, "headrace_requests_refused_total") == {("invalid_value",): 1, ("not_found",): 1}
    assert _samples(text, "headrace_queue_depth")["standard", "announced", "tiny@1"] == 1
    assert _samples(text, "headrace_streams_open") == {(): 0}
    latencies = _samples(text, "headrace_request_seconds_count")
    assert latencies["POST", "/v1/jobs", "202"] == 1
    assert latencies["GET", "/v1/jobs/{job_id}", "404"] == 1


@pytest.mark.usefixtures("model")
def test_without_redis_jobs_are_accepted_followed_and_cancelled(
    settings: Settings, key: str, worker: ScriptedWorker, db: Database
) -> None:
    with serving(settings.model_copy(update={"redis_url": NOWHERE})) as server, _client(server, key) as api:
        ready = api.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert ready.json()["redis"] != "ok"
        assert "not connected" in ready.json()["streams"]
        assert _samples(api.get("/metrics").text, "headrace_hub_connected") == {(): 0}
        wait_for(
            lambda: _samples(api.get("/metrics").text, "headrace_hub_errors_total").get(("connection",)),
            "the hub has tried to connect",
        )
        job_id = submit(api)
        attempt = worker.claim(job_id)
        worker.whisper(attempt, "still ", "works")
        worker.succeed(attempt, announce=False)
        assert api.get(f"/v1/jobs/{job_id}", params={"wait": 10}).json()["output"]["text"] == "still works"
        assert b"job.succeeded" in api.get(f"/v1/jobs/{job_id}/events").content
        assert api.post(f"/v1/jobs/{submit(api)}/cancel").json()["status"] == "cancelled"


@pytest.fixture
def own_postgres(server_folder: Path) -> Iterator[LocalPostgres]:
    """A server that this test may stop."""
    postgres = LocalPostgres(server_folder / "pg", server_folder / "postgres.log")
    postgres.start()
    yield postgres
    postgres.stop()


def test_without_postgres_it_says_so_and_recovers(settings: Settings, own_postgres: LocalPostgres) -> None:
    db = Database(own_postgres.url, pool_size=2, application_name="tests")
    upgrade(db)
    let_in(db, dict.fromkeys(ROLES, ROLE_PASSWORD))
    key = api_keys.create_key(db, api_keys.create_tenant(db, "acme"), "all", api_keys.SCOPES, actor="tests")
    register_version(
        db,
        model="tiny",
        runner="fake",
        source="fake:tiny",
        digest="0" * 64,
        dtype="float32",
        context_window=512,
        files={},
        actor="tests",
    )
    db.close()
    with serving(settings.model_copy(update={"database_url": own_postgres.url})) as server, _client(server, key) as api:
        submit(api)
        own_postgres.stop()
        with structlog.testing.capture_logs() as logs:
            asked_at = time.monotonic()
            response = api.post("/v1/jobs", json=PROMPT)
            assert time.monotonic() - asked_at < 25
        assert (response.status_code, error_of(response)["code"]) == (503, "database_unavailable")
        assert response.headers["retry-after"] == "1"
        # Duties, on their own threads, may say in the same moment that they miss Postgres.
        own = [entry["event"] for entry in logs if entry["log_level"] != "debug"]
        assert own.count("request_failed") == 1
        assert {*own} <= {"request_failed", "periodic_failed", "duty_failed"}
        ready = api.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
        assert ready.json()["error"]["code"] == "database_unavailable"
        assert api.get("/healthz").status_code == 200
        assert api.get("/metrics").status_code == 200
        own_postgres.start()
        submit(api)
        assert api.get("/readyz").status_code == 200


def test_an_error_of_ours_is_logged_without_its_values(
    api: httpx2.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("a-secret-prompt")

    monkeypatch.setattr("headrace.prompts.tasks.generate.build_prompt", explode)
    with structlog.testing.capture_logs() as logs:
        response = api.post("/v1/jobs", json={"model": "tiny", "input": {"prompt": "a-secret-prompt"}})
    error = error_of(response)
    assert (response.status_code, error["type"], error["code"]) == (500, "server_error", "internal_error")
    assert response.headers["x-request-id"] in error["message"] or "x-request-id" in error["message"]
    # Other threads of the API log too.
    [entry] = [entry for entry in logs if entry["log_level"] == "error"]
    assert entry["event"] == "internal_error"
    assert "explode" in str(entry["where"])
    output = capsys.readouterr()
    assert "a-secret-prompt" not in str(logs) + response.text + output.out + output.err


async def test_a_service_that_does_not_answer_is_named_and_only_postgres_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_go = threading.Event()

    def hang() -> str:
        assert let_go.wait(60)
        return "ok"

    monkeypatch.setattr("headrace.producer_api.server.health.ANSWER_WITHIN_S", 0.05)
    health = Health(Settings(database_url="postgresql://nowhere/none", redis_url=NOWHERE))
    monkeypatch.setattr(health, "postgres", hang)
    monkeypatch.setattr(health, "redis", hang)
    try:
        report = await health.report()
    finally:
        let_go.set()
        health.close()
    assert report == HealthReport(Naming("Postgres", "0.05 s"), Naming("Redis", "0.05 s"))
    assert [HealthReport(*parts).is_ready for parts in (("ok", "away"), ("away", "ok"))] == [True, False]
