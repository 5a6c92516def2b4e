"""What an embeddings request may ask, as which job it is stored, and how a refusal names the field that was sent."""

import json
from typing import Any

import httpx2
import openai as openai_errors
import pytest
from openai import OpenAI

from producer_api.app import create_app
from store.db.database import Database
from store.jobs import jobs
from store.registry.models import ModelVersion, set_alias
from store.schema.job_states import JobState
from store.settings import Settings
from tests.processes import wait_for

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
    ({"input": [[1], [257]]}, "invalid_value", "input[1]"),
    ({"input": [257]}, "invalid_value", "input"),
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


def test_each_model_says_which_route_is_its_own(openai: OpenAI, encoder: ModelVersion) -> None:
    with pytest.raises(openai_errors.BadRequestError, match="makes vectors and no text: use /v1/embeddings") as chat:
        openai.chat.completions.create(model="org/vectors", messages=[{"role": "user", "content": "hi"}])
    assert chat.value.param == "model"
    with pytest.raises(openai_errors.BadRequestError, match="generates text: use /v1/chat/completions"):
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


def test_who_leaves_before_the_end_cancels_the_job(
    api: httpx2.Client, db: Database, tenant: str, encoder: ModelVersion
) -> None:
    with pytest.raises(httpx2.TimeoutException):
        api.post("/v1/embeddings", json={"model": "org/vectors", "input": "x"}, timeout=0.5)
    # On a busy machine it may be stored after that.
    wait_for(lambda: [job.state for job in jobs.list_jobs(db, tenant)] == [JobState.CANCELLED], "the job ends")


def test_the_document_has_all_tasks_and_all_shapes_of_input(settings: Settings) -> None:
    document = json.loads(json.dumps(create_app(settings).openapi()))
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schemas = document["components"]["schemas"]
    tasks = {option["$ref"].rpartition("/")[2] for option in body["oneOf"]}
    assert tasks == {"GenerateRequest", "EmbedRequest", "RerankRequest"}
    assert len(schemas["EmbeddingRequest"]["properties"]["input"]["anyOf"]) == 4
    assert "EmbeddingList" in schemas
