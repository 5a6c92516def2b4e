"""Vector stores over HTTP: the model of a store, reranked searches, and the jobs that read files."""

import struct
from base64 import b64encode
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import httpx2
import pytest
import redis
from sqlalchemy import text

from headrace.features.encoders.embed.model import load_embed_model
from headrace.features.policy import policies
from headrace.features.retrieval import store_files
from headrace.features.retrieval.passages import FilePassages, Passage
from headrace.features.retrieval.store_files import NewStoreFile
from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.payloads.job_payload import EVERY_MODEL
from headrace.store.registry.models import ModelVersion, read_file
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from headrace.workers.worker_runtime import WorkerRuntime
from tests.producer_api.calling import bury, error_of, state_of
from tests.producer_api.conftest import MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import serving
from tests.roles import as_worker

QUEUE = "org/vectors@1"
STORES = "/v1/vector_stores"
# Its number is cut in two if the text is cut first: a passage has at most 100 tokens, and this model's are bytes.
CARD = "4111 1111 1111 1111"
TEXT = "x " * 45 + CARD + " and then to the mill" * 5
STATIC = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}


def upload(api: httpx2.Client, content: str = TEXT) -> str:
    answer = api.post("/v1/files", data={"purpose": "assistants"}, files={"file": ("a.txt", content.encode())})
    return str(answer.raise_for_status().json()["id"])


def created(api: httpx2.Client, **fields: Any) -> dict[str, Any]:
    return dict(api.post(STORES, json=fields).raise_for_status().json())


def read(api: httpx2.Client, path: str) -> dict[str, Any]:
    return dict(api.get(f"{STORES}/{path}").raise_for_status().json())


def added(api: httpx2.Client, store_id: str, content: str = TEXT) -> dict[str, Any]:
    body = {"file_id": upload(api, content), "chunking_strategy": STATIC}
    return dict(api.post(f"{STORES}/{store_id}/files", json=body).raise_for_status().json())


@pytest.fixture
def reader(db: Database, settings: Settings, encoder: ModelVersion) -> Iterator[WorkerRuntime]:
    """A worker without Celery that makes the vectors of files."""
    own = as_worker(settings)
    model = load_embed_model(encoder, own, partial(read_file, db))
    runtime = WorkerRuntime(own, model, owner="reader", max_jobs=8, exit_now=lambda _code: None)
    runtime.start()
    yield runtime
    runtime.stop()


def test_a_store_has_the_model_that_is_named_or_set_or_the_only_one(
    api: httpx2.Client, make_client: MakeClient, db: Database, tenant: str, settings: Settings, key: str
) -> None:
    register(db, "reranker", "fake-cross-encoder", "auto", actor="tests")

    def refused(client: httpx2.Client, **fields: Any) -> str:
        answer = client.post(STORES, json=fields)
        assert (answer.status_code, error_of(answer)["param"]) == (400, "model"), answer.text
        return str(error_of(answer)["message"])

    assert "no model" in refused(api)
    register(db, "one", "fake-encoder", "auto", actor="tests")
    assert created(api)["model"] == "one@1"
    register(db, "two", "fake-encoder", "auto", actor="tests")
    assert "(one, two)" in refused(api)
    assert created(api, model="two")["model"] == "two@1"
    assert "use /v1/rerank" in refused(api, model="reranker")
    limited = api_keys.SCOPES - {"admin"}
    narrow = api_keys.create_key(db, tenant, "narrow", limited, models=["two", "reranker"], actor="tests")
    assert created(make_client(narrow))["model"] == "two@1"
    headers = {"Authorization": f"Bearer {key}"}
    with (
        serving(settings.model_copy(update={"retrieval_model": "one"})) as server,
        httpx2.Client(base_url=server.url, headers=headers, timeout=60) as client,
    ):
        assert created(client)["model"] == "one@1"
        assert created(client, model="two")["model"] == "two@1"
    assert len(read(api, "")["data"]) == 5, "no refused store is kept"


def with_passages(api: httpx2.Client, db: Database, tenant: str, texts: Sequence[str]) -> str:
    """Make a store of a file whose passages are ever less near to the first axis."""
    store_id = str(created(api)["id"])
    ((file,), _) = store_files.attach(db, tenant, store_id, [NewStoreFile(upload(api), {}, 100, 0)])
    vectors = tuple(struct.pack("<8f", 1.0, float(n), *[0.0] * 6) for n in range(len(texts)))
    found = tuple(Passage(one, 0, len(one)) for one in texts)
    with db.begin() as connection:
        FilePassages(file.ticket, tenant, found, vectors).write(connection, db.seal)
    return store_id


def test_a_rerank_model_orders_what_was_found_and_gives_the_scores(
    api: httpx2.Client, db: Database, tenant: str, encoder: ModelVersion, redis_client: redis.Redis
) -> None:
    register(db, "reranker", "fake-cross-encoder", "auto", actor="tests")
    texts = ["a mill", "bread", "a river"]
    store_id = with_passages(api, db, tenant, texts)
    asked: list[dict[str, Any]] = []

    def vector(payload: dict[str, Any]) -> dict[str, Any]:
        axis = b64encode(struct.pack("<8f", 1.0, *[0.0] * 7)).decode()
        return {"embeddings": [axis] * len(payload["input"]["texts"]), "dimensions": 8}

    def scores(payload: dict[str, Any]) -> dict[str, Any]:
        asked.append(payload["input"])
        ordered = ((2, 1.5), (0, 0.5), (1, 0.25))
        return {"results": [{"index": index, "relevance_score": score} for index, score in ordered]}

    def found(**fields: Any) -> list[tuple[str, float]]:
        answer = api.post(f"{STORES}/{store_id}/search", json={"query": "nothing of it", **fields}).raise_for_status()
        return [(one["content"][0]["text"], one["score"]) for one in answer.json()["data"]]

    ranker = {"ranker": "reranker"}
    with (
        ScriptedWorker(db, redis_client, QUEUE).serve(vector),
        ScriptedWorker(db, redis_client, "reranker@1").serve(scores),
    ):
        assert [one for one, _ in found()] == [one for one, _ in found(ranking_options={"ranker": "auto"})] == texts
        assert asked == []
        assert found(ranking_options=ranker) == [("a river", 1.0), ("a mill", 0.5), ("bread", 0.25)]
        # The model sees all of them, also those that the caller does not get.
        assert found(ranking_options=ranker, max_num_results=1) == [("a river", 1.0)]
        assert found(ranking_options={**ranker, "score_threshold": 0.4})[1:] == [("a mill", 0.5)]
        assert asked == [{"query": "nothing of it", "documents": texts}] * 3
        body = {"query": "x", "ranking_options": {"ranker": "nobody"}}
        refused = api.post(f"{STORES}/{store_id}/search", json=body)
    assert (refused.status_code, error_of(refused)["param"]) == (404, "ranking_options.ranker")


def test_a_cancelled_batch_keeps_what_was_read_and_touches_no_other(
    api: httpx2.Client, db: Database, encoder: ModelVersion, reader: WorkerRuntime
) -> None:
    store_id = created(api)["id"]
    first, second = (
        # A file that is named twice is read once.
        api.post(f"{STORES}/{store_id}/file_batches", json={"file_ids": [one := upload(api), upload(api), one]}).json()
        for _ in range(2)
    )
    alone = added(api, store_id)

    def files(batch: dict[str, Any]) -> list[dict[str, Any]]:
        return list(read(api, f"{store_id}/file_batches/{batch['id']}/files")["data"])

    done, waiting = files(first)
    reader.job_runner.run(done["job_id"])
    stopped = api.post(f"{STORES}/{store_id}/file_batches/{first['id']}/cancel").raise_for_status().json()
    assert stopped["status"] == "cancelled"
    assert stopped["file_counts"] == {"in_progress": 0, "completed": 1, "failed": 0, "cancelled": 1, "total": 2}
    assert state_of(db, waiting["job_id"]) == "cancelled"
    assert {one["id"]: one["status"] for one in files(first)} == {done["id"]: "completed", waiting["id"]: "cancelled"}
    assert [state_of(db, one["job_id"]) for one in (*files(second), alone)] == ["queued"] * 3
    assert read(api, f"{store_id}/file_batches/{second['id']}")["status"] == "in_progress"


def test_a_batch_is_cancelling_while_a_worker_reads_one_of_its_files(
    api: httpx2.Client, db: Database, encoder: ModelVersion, redis_client: redis.Redis
) -> None:
    store_id = created(api)["id"]
    batch = api.post(f"{STORES}/{store_id}/file_batches", json={"file_ids": [upload(api), upload(api)]}).json()
    path = f"{store_id}/file_batches/{batch['id']}"
    running, _ = read(api, f"{path}/files")["data"]
    worker = ScriptedWorker(db, redis_client, QUEUE)
    attempt = worker.claim(running["job_id"])
    stopped = api.post(f"{STORES}/{path}/cancel").raise_for_status().json()
    assert (stopped["status"], stopped["file_counts"]["in_progress"]) == ("cancelling", 1)
    assert read(api, path) == stopped
    worker.obey_cancel(attempt)
    ended = read(api, path)
    assert (ended["status"], ended["file_counts"]["cancelled"]) == ("cancelled", 2)


def texts_of(api: httpx2.Client, file: dict[str, Any]) -> list[str]:
    return [one["text"] for one in read(api, f"{file['vector_store_id']}/files/{file['id']}/content")["data"]]


def test_a_policy_sees_the_text_of_a_file_before_it_is_cut(
    api: httpx2.Client, db: Database, tenant: str, encoder: ModelVersion, reader: WorkerRuntime
) -> None:
    rules = [
        {"id": "cards", "kinds": ["card"], "action": "redact", "stage": "input"},
        {"id": "no-mail", "kinds": ["email"], "action": "block", "stage": "input"},
    ]
    api.put("/v1/policies", json={"document": {"rules": rules}}).raise_for_status()
    store_id = created(api)["id"]

    def ended(file: dict[str, Any]) -> dict[str, Any]:
        reader.job_runner.run(file["job_id"])
        return read(api, f"{store_id}/files/{file['id']}")

    redacted = ended(added(api, store_id))
    assert (redacted["status"], "".join(texts_of(api, redacted)).count("<CARD_1>")) == ("completed", 1)
    assert not any("1111" in one for one in texts_of(api, redacted))
    blocked = ended(added(api, store_id, "ask ann@example.com"))
    assert (blocked["status"], texts_of(api, blocked)) == ("failed", [])
    assert "no-mail" in blocked["last_error"]["message"]
    # A worker finds no names: it refuses the file, whose text would be stored as it is.
    rule = {"id": "names", "kinds": ["person"], "action": "redact", "stage": "input"}
    stored = policies.put(db, tenant, EVERY_MODEL, {"version": 1, "rules": [rule]}, "tests")
    named = added(api, store_id)
    with db.begin() as connection:
        version = """
            UPDATE jobs SET payload = to_jsonb(CAST(
                jsonb_set(CAST(payload #>> '{}' AS jsonb), '{policy,version}', :version) AS text))
            WHERE id = :id"""
        connection.execute(text(version), {"version": str(stored.version), "id": named["job_id"]})
    assert "in files" in ended(named)["last_error"]["message"]
    assert texts_of(api, named) == []


def test_the_replay_of_a_job_that_was_given_up_fills_the_store(
    api: httpx2.Client, db: Database, encoder: ModelVersion, reader: WorkerRuntime
) -> None:
    store_id = created(api)["id"]
    file, other = added(api, store_id), added(api, store_id)
    bury(db, file["job_id"], QUEUE)
    lost = read(api, f"{store_id}/files/{file['id']}")
    assert (lost["status"], lost["last_error"]["code"]) == ("failed", "server_error")
    replayed = api.post(f"/v1/dead_letters/{file['job_id']}/replay").raise_for_status().json()
    reader.job_runner.run(replayed["job_id"])
    assert state_of(db, replayed["job_id"]) == "succeeded"
    done = read(api, f"{store_id}/files/{file['id']}")
    assert (done["status"], done["last_error"]) == ("completed", None)
    passages_of = texts_of(api, file)
    assert (len(passages_of), " ".join(passages_of)) == (3, TEXT)
    assert passages_of[0].endswith("x 4111 1111"), "the number is cut in two"
    assert texts_of(api, other) == []
    assert read(api, store_id)["file_counts"]["completed"] == 1


@pytest.mark.usefixtures("encoder")
def test_a_change_keeps_what_it_does_not_name(api: httpx2.Client) -> None:
    store = {"name": "Handbook", "metadata": {"team": "mill"}}
    path = f"/v1/vector_stores/{api.post('/v1/vector_stores', json=store).raise_for_status().json()['id']}"
    for change in ({"name": "Guide"}, {"metadata": {"team": "wheel"}}):
        store |= change
        changed = api.post(path, json=change).raise_for_status().json()
        assert {name: changed[name] for name in store} == store
