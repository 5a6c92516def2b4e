"""What requests of classify, token_classify and score may ask, and how an error names the field that was sent."""

import json
from typing import Any

import httpx2
import pytest

from headrace.features.encoders.classify.task import MAX_CLASSIFY_INPUTS
from headrace.features.encoders.score.task import MAX_SCORE_PAIRS
from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.tasks.registry import TASKS
from tests.cases import some_of

CONTEXT_WINDOW = 8192
LONG = "x" * (CONTEXT_WINDOW + 1)

REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("classify", {"input": []}, "invalid_value", "input"),
    ("classify", {"input": ["x"] * (MAX_CLASSIFY_INPUTS + 1)}, "invalid_value", "input"),
    ("classify", {"input": ["x", ""]}, "invalid_value", "input[1]"),
    ("classify", {"input": 3}, "invalid_value", "input"),
    ("classify", {"input": LONG}, "context_length_exceeded", "input"),
    ("classify", {"input": ["x", LONG]}, "context_length_exceeded", "input[1]"),
    ("classify", {"input": ["x", [LONG, "x"]], "truncate": True}, "context_length_exceeded", "input[1]"),
    ("classify", {"input": ["x" * 8000] * 38}, "invalid_value", "input"),
    ("classify", {"top_k": 0}, "invalid_value", "top_k"),
    ("classify", {"top_n": 1}, "unsupported_parameter", "top_n"),
    ("classify", {"truncate": "middle"}, "invalid_value", "truncate"),
    ("classify", {"job": {"priority": 10}}, "invalid_value", "job.priority"),
    ("classify", {"model": "rerank"}, "invalid_value", "model"),
    ("token_classify", {"input": ["x", LONG]}, "context_length_exceeded", "input[1]"),
    ("token_classify", {"input": [["x", "y"]]}, "invalid_value", "input[0]"),
    ("token_classify", {"aggregation_strategy": "mean"}, "invalid_value", "aggregation_strategy"),
    ("token_classify", {"model": "classify"}, "invalid_value", "model"),
    ("score", {"text_1": ["x", "y"], "text_2": ["x"]}, "invalid_value", "text_1"),
    ("score", {"text_1": ["x", "y"], "text_2": ["x", ""]}, "invalid_value", "text_2[1]"),
    ("score", {"text_2": ["x"] * (MAX_SCORE_PAIRS + 1)}, "invalid_value", "text_2"),
    ("score", {"text_2": LONG}, "context_length_exceeded", "text_2"),
    ("score", {"text_2": ["x", LONG]}, "context_length_exceeded", "text_2[1]"),
    ("score", {"model": "embed", "text_1": LONG}, "context_length_exceeded", "text_1"),
    ("score", {"model": "classify"}, "invalid_value", "model"),
]
BODIES: dict[str, dict[str, Any]] = {
    "classify": {"model": "classify", "input": "x"},
    "token_classify": {"model": "token_classify", "input": "x"},
    "score": {"model": "rerank", "text_1": "x", "text_2": "y"},
}


@pytest.fixture
def models(db: Database) -> None:
    for task in ("embed", "rerank", "classify", "token_classify"):
        register(db, task, TASKS[task].fake_runner, "auto", actor="tests")


@pytest.mark.usefixtures("models")
def test_what_is_refused_names_what_was_sent_and_nothing_is_stored(
    api: httpx2.Client, db: Database, tenant: str
) -> None:
    for task, body, code, param in REFUSED:
        answer = api.post(f"/v1/{task}", json=BODIES[task] | body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"] or "") == (400, code, param), (task, body, error)
        assert "input." not in error["message"]
    assert jobs.list_jobs(db, tenant) == []


@pytest.mark.usefixtures("models")
@some_of(
    2,
    ("body", "num_tokens"),
    [
        ({"task": "classify", "model": "classify", "input": {"texts": ["abc", ["de", "f"]]}}, 6),
        ({"task": "token_classify", "model": "token_classify", "input": {"texts": ["abc", "é"]}}, 5),
        ({"task": "score", "model": "rerank", "input": {"text_1": ["abc"], "text_2": ["de", "f"]}}, 9),
        ({"task": "score", "model": "embed", "input": {"text_1": ["abc"], "text_2": ["de", "f"]}}, 6),
        ({"task": "rerank", "model": "rerank", "input": {"query": "a", "documents": [LONG]}, "truncate": True}, 8192),
    ],
)
def test_a_native_job_costs_the_tokens_that_the_model_reads(
    api: httpx2.Client, db: Database, tenant: str, body: dict[str, Any], num_tokens: int
) -> None:
    answer = api.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    (job,) = jobs.list_jobs(db, tenant)
    assert (job.task, job.input_tokens) == (body["task"], num_tokens)
    assert job.payload.get("ignore_labels", ["O"]) == ["O"], "what is no entity is left out by default"


@pytest.mark.usefixtures("models")
def test_a_policy_takes_values_out_of_texts_and_pairs(api: httpx2.Client, db: Database, tenant: str) -> None:
    rule = {"id": "pii", "kinds": ["email"], "action": "redact", "stage": "input"}
    assert api.put("/v1/policies", json={"document": {"rules": [rule]}}).status_code == 200
    texts = ["mail of ann@example.com", ["ask ann@example.com", "bread"]]
    made = api.post("/v1/jobs", json={"task": "classify", "model": "classify", "input": {"texts": texts}}).json()
    stored = jobs.get(db, tenant, made["id"]).payload["input"]
    assert stored == {"texts": ["mail of <EMAIL_1>", ["ask <EMAIL_1>", "bread"]]}


@pytest.mark.parametrize("task", BODIES)
def test_a_body_with_many_texts_may_be_larger_than_others(api: httpx2.Client, task: str) -> None:
    content = json.dumps(BODIES[task] | {"model": "nobody"}).encode() + b" " * (2 << 20)
    answer = api.post(f"/v1/{task}", content=content, headers={"Content-Type": "application/json"})
    assert answer.json()["error"]["code"] == "model_not_found"
