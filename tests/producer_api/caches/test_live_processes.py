"""Submissions without a worker for their model version, and the longest request that the workers can hold."""

from collections.abc import Iterator

import httpx2
import pytest
from sqlalchemy import text

from headrace.producer_api.caches.live_processes import CONFIRM_S, LiveProcesses
from headrace.store.db import presence
from headrace.store.db.database import Database
from headrace.store.db.presence import GONE_AFTER_S
from headrace.store.errors import Unavailable
from headrace.store.jobs import jobs
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from tests.cases import of
from tests.processes import wait_for
from tests.producer_api.calling import CHAT, PROMPT, error_of, num_jobs
from tests.producer_api.conftest import CONTEXT_WINDOW, MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer, serving
from tests.refusals import Naming

QUEUE = "tiny@1"
WARNING = "no worker serves tiny@1; the job waits until one starts"
RESPONSE = {"model": "tiny", "input": "hello", "max_output_tokens": 8}
STREAMED = {"stream": True}
FACES = {
    "native": ("/v1/jobs", PROMPT),
    "chat": ("/v1/chat/completions", CHAT),
    "chat, streamed": ("/v1/chat/completions", CHAT | STREAMED),
    "completion": ("/v1/completions", {"model": "tiny", "prompt": "hello"}),
    "response": ("/v1/responses", RESPONSE),
    **dict(of("anthropic", ("message", ("/v1/messages", CHAT | {"max_tokens": 8})))),
    "response, streamed": ("/v1/responses", RESPONSE | STREAMED),
    "response in the background": ("/v1/responses", RESPONSE | {"background": True}),
}


def beat(db: Database, worker: str, capacity: int | None) -> None:
    """Record a live worker, for as long as the test takes."""
    presence.beat_worker(db, worker, QUEUE, capacity)
    with db.begin() as connection:
        connection.execute(text("UPDATE worker_processes SET seen_at = now() + interval '1 hour'"))


def test_a_submission_without_a_worker_says_so_on_every_face(
    api: httpx2.Client, server: ApiServer, db: Database, worker: ScriptedWorker, subtests: pytest.Subtests
) -> None:
    with worker.serve(lambda _: ("hi",)):
        for face, (path, body) in FACES.items():
            with subtests.test(face):
                answer = api.post(path, json=body)
                assert (answer.is_success, answer.headers.get("headrace-warning")) == (True, WARNING)
        beat(db, "w1", None)
        wait_for(lambda: not server.runtime.live_processes.is_unserved(QUEUE), "the worker is known")
        for face, (path, body) in FACES.items():
            with subtests.test(f"{face}, served"):
                answer = api.post(path, json=body)
                assert (answer.is_success, answer.headers.get("headrace-warning")) == (True, None)


def test_an_answer_that_does_not_come_in_time_says_why(settings: Settings, model: ModelVersion, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    with serving(settings.model_copy(update={"sync_timeout_s": 0.1})) as server:
        answer = httpx2.post(f"{server.url}/v1/chat/completions", json=CHAT, headers=headers, timeout=60)
    assert (error_of(answer)["code"], answer.headers["headrace-warning"]) == ("sync_timeout", WARNING)


@pytest.fixture
def strict(settings: Settings, model: ModelVersion, key: str) -> Iterator[httpx2.Client]:
    with (
        serving(settings.model_copy(update={"require_worker": True})) as server,
        httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client,
    ):
        yield client


def test_by_a_setting_it_is_refused_before_anything_is_stored(
    strict: httpx2.Client, db: Database, subtests: pytest.Subtests
) -> None:
    for face, (path, body) in FACES.items():
        with subtests.test(face):
            refused = strict.post(path, json=body)
            assert (refused.status_code, error_of(refused)["code"]) == (503, "no_worker")
            assert (QUEUE in error_of(refused)["message"], refused.headers["retry-after"]) == (True, "10")
    assert num_jobs(db) == 0
    beat(db, "w1", None)
    once = {"Idempotency-Key": "once"}
    wait_for(lambda: strict.post("/v1/jobs", json=PROMPT, headers=once).status_code == 202, "it is taken")
    presence.leave_worker(db, "w1")
    wait_for(lambda: strict.post("/v1/jobs", json=PROMPT).status_code == 503, "it is refused again")
    assert strict.post("/v1/jobs", json=PROMPT, headers=once).status_code == 202, "that one was accepted before"


def test_what_was_heard_long_ago_of_workers_is_not_believed(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """While Postgres is down no request is refused for a missing worker, which may have started since."""
    now = 100.0
    heard = LiveProcesses(db, clock=lambda: now)
    assert heard.is_unserved("tiny@1")

    def away(_: Database) -> None:
        raise Unavailable("away")

    monkeypatch.setattr(presence, "read_serving", away)
    now += CONFIRM_S + GONE_AFTER_S
    assert heard.serving("tiny@1") is None
    assert not heard.is_unserved("tiny@1")


def test_a_queue_shows_its_workers_and_what_they_run(
    api: httpx2.Client, db: Database, worker: ScriptedWorker, make_client: MakeClient, other_key: str
) -> None:
    running = api.post("/v1/jobs", json=PROMPT).json()["id"]
    api.post("/v1/jobs", json=PROMPT).raise_for_status()
    worker.claim(running)
    beat(db, "w1", None)
    beat(db, "w2", 64)
    (mine,) = (queue for queue in api.get("/v1/queues").json()["data"] if queue["name"] == QUEUE)
    assert (mine["workers"], mine["running"], mine["share"]) == (2, 1, "all")


def prompt(max_tokens: int | None = None) -> dict[str, object]:
    return PROMPT | {"sampling": {} if max_tokens is None else {"max_tokens": max_tokens}}


def test_a_request_is_as_long_as_the_largest_worker_can_hold(
    api: httpx2.Client, server: ApiServer, db: Database, tenant: str
) -> None:
    def capacity_is(tokens: int) -> bool:
        found = server.runtime.live_processes.serving(QUEUE)
        return found is not None and found.capacity == tokens

    # "hello" is 5 tokens for the fake model. No worker is known: the model's context window counts.
    assert api.post("/v1/jobs", json=prompt(CONTEXT_WINDOW - 5)).status_code == 202
    beat(db, "small", 64)
    wait_for(lambda: capacity_is(64), "the small worker is known")
    assert api.post("/v1/jobs", json=prompt(59)).status_code == 202
    for body in (prompt(60), PROMPT | {"input": {"prompt": "x" * 64}}):
        refused = api.post("/v1/jobs", json=body)
        assert (refused.status_code, error_of(refused)["code"]) == (400, "context_length_exceeded")
        assert error_of(refused)["message"] == Naming("64 tokens", "512"), "of the workers, and of the model"
    assert api.post("/v1/completions", json={"model": "tiny", "prompt": "x" * 64}).status_code == 400
    job = jobs.get(db, tenant, api.post("/v1/jobs", json=PROMPT).json()["id"])
    assert job.payload["sampling"]["max_tokens"] == 59, "what is left of it"
    beat(db, "large", 256)
    wait_for(lambda: capacity_is(256), "the large worker is known")
    assert api.post("/v1/jobs", json=prompt(251)).status_code == 202
