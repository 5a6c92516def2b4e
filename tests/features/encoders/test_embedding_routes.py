"""What an embeddings request may ask, as which job it is stored, and how a refusal names the field that was sent."""

import json
import struct
from base64 import b64encode
from typing import Any

import httpx2
import openai as openai_errors
import pytest
import redis
from openai import OpenAI

from headrace.producer_api.app import create_app
from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.registry.models import ModelVersion
from headrace.store.registry.versions import set_alias
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tasks.registry import TASKS
from tests.processes import wait_for
from tests.producer_api.calling import cut_off
from tests.producer_api.scripted_worker import ScriptedWorker

CONTEXT_WINDOW = 8192

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"input": ""}, "invalid_value", "input"),
    ({"input": []}, "invalid_value", "input"),
    ({"input": None}, "invalid_value", "input"),
    ({"input": {"text": "x"}}, "invalid_value", "input"),
    ({"input": ["x", ""]}, "invalid_value", "input[1]"),
    ({"input": ["x", 3]}, "invalid_value", "input[1]"),
    ({"input": [3, "x"]}, "invalid_value", "input[0]"),
    ({"input": [[1], []]}, "invalid_value", "input[1]"),
    ({"input": [[1], [1.5]]}, "invalid_value", "input[1]"),
    ({"input": [True]}, "invalid_value", "input[0]"),
    ({"input": [-1]}, "invalid_value", "input[0]"),
    ({"input": [[1], [257]], "own_token_ids": True}, "invalid_value", "input[1]"),
    ({"input": [[1], [2]]}, "invalid_value", "input"),
    ({"input": "x", "truncate": "START"}, "invalid_value", "truncate"),
    ({"input": ["x" * 8000] * 38}, "invalid_value", "input"),
    ({"input": [257], "own_token_ids": True}, "invalid_value", "input"),
    ({"input": ["x"] * 2049}, "invalid_value", "input"),
    ({"input": "x" * (CONTEXT_WINDOW + 1)}, "context_length_exceeded", "input"),
    ({"input": ["x", "x", "x" * (CONTEXT_WINDOW + 1)]}, "context_length_exceeded", "input[2]"),
    ({"input": "x", "dimensions": 9}, "invalid_value", "dimensions"),
    ({"input": "x", "dimensions": 0}, "invalid_value", "dimensions"),
    ({"input": "x", "encoding_format": "hex"}, "invalid_value", "encoding_format"),
    ({"input": "x", "job": {"priority": 10}}, "invalid_value", "job.priority"),
    ({"input": "x", "model": "tiny"}, "invalid_value", "model"),
    ({"input": "x", "model": "nobody"}, "model_not_found", "model"),
]


def test_what_is_refused_names_what_was_sent_and_nothing_is_stored(
    api: httpx2.Client, db: Database, tenant: str, encoder: ModelVersion
) -> None:
    for body, code, param in REFUSED:
        answer = api.post("/v1/embeddings", json={"model": "org/vectors", **body})
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == (code, param), (body, error)
        assert answer.status_code == (404 if code == "model_not_found" else 400)
        assert "input." not in error["message"]
    assert jobs.list_jobs(db, tenant) == []


def test_token_ids_are_refused_unless_they_are_the_model_s_own(
    api: httpx2.Client, db: Database, tenant: str, encoder: ModelVersion
) -> None:
    # As LangChain's OpenAIEmbeddings sends a text by default.
    refused = api.post("/v1/embeddings", json={"model": "org/vectors", "input": [[64, 2386]]})
    assert "check_embedding_ctx_length=False" in refused.json()["error"]["message"]
    own = {"input": [[64, 2], [3]], "own_token_ids": True}
    (job,) = _stored(api, db, tenant, own)
    assert job.payload["input"]["token_ids"] == own["input"]


@pytest.mark.parametrize("how", [{"truncate": True}, {"truncate": "END"}, {"truncation": "auto"}])
def test_a_long_input_is_cut_if_the_request_says_so(
    api: httpx2.Client, db: Database, tenant: str, encoder: ModelVersion, how: dict[str, Any]
) -> None:
    (job,) = _stored(api, db, tenant, how | {"input": ["ab", "x" * 9000]})
    assert (job.input_tokens, job.payload["truncate"]) == (2 + CONTEXT_WINDOW, True)


def test_inputs_are_bounded_by_their_tokens_not_by_a_megabyte(
    api: httpx2.Client, db: Database, tenant: str, encoder: ModelVersion
) -> None:
    text = "\u00e9" * 4000  # six bytes a letter on the wire, two tokens of this model
    (job,) = _stored(api, db, tenant, {"input": [text] * 37, "metadata": {"k": "v"}}, padding=2 << 20)
    assert job.input_tokens == 37 * 8000


def _stored(api: httpx2.Client, db: Database, tenant: str, body: dict[str, Any], padding: int = 0) -> list[jobs.Job]:
    """Ask for vectors that nobody makes; return the stored jobs."""
    with cut_off(api, "/v1/embeddings", {"model": "org/vectors", **body}, padding):
        return wait_for(lambda: jobs.list_jobs(db, tenant), "the job is stored")


def test_each_model_says_which_route_is_its_own(openai: OpenAI, encoder: ModelVersion) -> None:
    with pytest.raises(openai_errors.BadRequestError, match="/v1/embeddings") as chat:
        openai.chat.completions.create(model="org/vectors", messages=[{"role": "user", "content": "hi"}])
    assert chat.value.param == "model"
    with pytest.raises(openai_errors.BadRequestError, match="/v1/chat/completions"):
        openai.embeddings.create(model="tiny", input="hi")


def test_models_are_told_by_every_string_that_means_them(openai: OpenAI, db: Database, encoder: ModelVersion) -> None:
    set_alias(db, "org/vectors", "canary", 1, "tests")
    ids = [model.id for model in openai.models.list()]
    vectors = ["org/vectors", "org/vectors@canary", "org/vectors@default", "org/vectors@1"]
    assert ids == [*vectors, "tiny", "tiny@default", "tiny@1"]
    for name in ids:
        found = openai.models.retrieve(name)
        assert (found.id, found.object, found.owned_by) == (name, "model", "headrace")
        assert found.created > 0
        window = 8192 if name.startswith("org/") else 512
        extras = found.model_dump(include={"root", "parent", "max_model_len", "context_length"})
        assert extras == {
            "root": name.partition("@")[0],
            "parent": None,
            "max_model_len": window,
            "context_length": window,
        }
        assert found.task == ("embed" if name.startswith("org/") else "generate")  # type: ignore[attr-defined]
    for unknown in ("nobody", "org/nobody", "tiny@2", "tiny@nobody"):
        with pytest.raises(openai_errors.NotFoundError) as refused:
            openai.models.retrieve(unknown)
        assert refused.value.code == "model_not_found"


def test_a_native_job_of_either_task_is_checked_as_its_task(
    api: httpx2.Client, db: Database, tenant: str, encoder: ModelVersion
) -> None:
    body: dict[str, Any] = {"task": "embed", "model": "org/vectors", "input": {"texts": ["ab", "c"]}, "dimensions": 4}
    answer = api.post("/v1/jobs", json=body | {"priority": 2})
    assert answer.status_code == 202
    stored = jobs.get(db, tenant, answer.json()["id"])
    assert (stored.task, stored.priority, stored.input_tokens) == ("embed", 2, 3)
    for change, code, param in (
        ({"task": "dream"}, "invalid_value", "task"),
        ({"task": ["embed"]}, "invalid_value", "task"),
        ({"input": {}}, "invalid_value", "input"),
        ({"input": {"texts": [""]}}, "invalid_value", "input.texts[0]"),
        ({"sampling": {}}, "unsupported_parameter", "sampling"),
        ({"dimensions": 99}, "invalid_value", "dimensions"),
        ({"task": "generate"}, "unsupported_parameter", "input.texts"),
        ({"model": "tiny"}, "invalid_value", "model"),
    ):
        error = api.post("/v1/jobs", json=body | change).json()["error"]
        assert (error["code"], error["param"]) == (code, param), (change, error)


def test_an_answer_has_a_vector_for_each_input_and_the_headers_of_its_job(
    api: httpx2.Client, db: Database, tenant: str, encoder: ModelVersion, redis_client: redis.Redis
) -> None:
    vectors = [b64encode(struct.pack("<2f", *pair)).decode() for pair in ((1.0, -0.5), (0.25, 2.0))]
    body: dict[str, Any] = {"model": "org/vectors", "input": ["ab", "c"]}
    with ScriptedWorker(db, redis_client, "org/vectors@1").serve(lambda _: {"embeddings": vectors}):
        numbers = api.post("/v1/embeddings", json=body)
        packed = api.post("/v1/embeddings", json=body | {"encoding_format": "base64"})
    assert numbers.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [1.0, -0.5]},
            {"object": "embedding", "index": 1, "embedding": [0.25, 2.0]},
        ],
        "model": "org/vectors@1",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    assert [one["embedding"] for one in packed.json()["data"]] == vectors
    ids = [job.id for job in jobs.list_jobs(db, tenant)]
    told = [(answer.headers["x-job-id"], answer.headers["x-model-version"]) for answer in (packed, numbers)]
    assert told == [(job_id, "1") for job_id in ids]


def test_who_leaves_before_the_end_cancels_the_job(
    api: httpx2.Client, db: Database, tenant: str, encoder: ModelVersion
) -> None:
    with cut_off(api, "/v1/embeddings", {"model": "org/vectors", "input": "x"}):
        wait_for(lambda: jobs.list_jobs(db, tenant), "the job is stored")
    wait_for(lambda: all(job.state.is_terminal for job in jobs.list_jobs(db, tenant)), "the job ends")
    assert [job.state for job in jobs.list_jobs(db, tenant)] == [JobState.CANCELLED]


def test_the_document_has_all_tasks_and_all_shapes_of_input(settings: Settings) -> None:
    document = json.loads(json.dumps(create_app(settings).openapi()))
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schemas = document["components"]["schemas"]
    tasks = {option["$ref"].rpartition("/")[2] for option in body["oneOf"]}
    assert tasks == {task.request.__name__ for task in TASKS.values()} | {"FlowRequest", "PipelineRequest"}
    assert len(schemas["EmbeddingRequest"]["properties"]["input"]["anyOf"]) == 5
    assert "EmbeddingList" in schemas
