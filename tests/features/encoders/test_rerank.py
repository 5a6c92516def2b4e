"""What a rerank request may ask, as which job it is stored, and how an error names the field that was sent."""

from typing import Any

import httpx2
import pytest

from headrace.features.encoders.rerank.task import MAX_DOCUMENTS
from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.registry.models import ModelVersion

CONTEXT_WINDOW = 8192

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"documents": []}, "invalid_value", "documents"),
    ({"documents": None}, "invalid_value", "documents"),
    ({"documents": ["x"] * (MAX_DOCUMENTS + 1)}, "invalid_value", "documents"),
    ({"documents": ["x", ""]}, "invalid_value", "documents[1]"),
    ({"documents": ["x", 3]}, "invalid_value", "documents[1]"),
    ({"documents": ["x", {"title": "x"}]}, "invalid_value", "documents[1].text"),
    ({"query": ""}, "invalid_value", "query"),
    ({"query": "x" * CONTEXT_WINDOW}, "context_length_exceeded", "query"),
    ({"documents": ["x", "x" * CONTEXT_WINDOW]}, "context_length_exceeded", "documents[1]"),
    ({"top_n": 0}, "invalid_value", "top_n"),
    ({"job": {"priority": 10}}, "invalid_value", "job.priority"),
    ({"document": ["x"]}, "unsupported_parameter", "document"),
    ({"model": "tiny"}, "invalid_value", "model"),
    ({"model": "nobody"}, "model_not_found", "model"),
]


@pytest.fixture
def reranker(db: Database) -> ModelVersion:
    return register(db, "reranker", "fake-cross-encoder", "auto", actor="tests")


def test_what_is_refused_names_what_was_sent_and_nothing_is_stored(
    api: httpx2.Client, db: Database, tenant: str, reranker: ModelVersion
) -> None:
    for body, code, param in REFUSED:
        answer = api.post("/v1/rerank", json={"model": "reranker", "query": "x", "documents": ["x", "y"], **body})
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == (code, param or None), (body, error)
        assert answer.status_code == (404 if code == "model_not_found" else 400)
        assert "input." not in error["message"]
    assert jobs.list_jobs(db, tenant) == []


@pytest.mark.parametrize("path", ["/rerank", "/v2/rerank"])
def test_the_paths_of_jina_and_cohere_are_the_same_route(api: httpx2.Client, reranker: ModelVersion, path: str) -> None:
    body = {"model": "reranker", "query": "x", "documents": ["x", ""]}
    answer = api.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "documents[1]")
    assert api.post(path, json=body, headers={"Authorization": ""}).status_code == 401


def test_other_tasks_are_told_the_route(api: httpx2.Client, reranker: ModelVersion) -> None:
    answer = api.post("/v1/embeddings", json={"model": "reranker", "input": "x"})
    assert "use /v1/rerank" in answer.json()["error"]["message"]


def test_the_native_job_stores_the_pairs_cost(api: httpx2.Client, db: Database, reranker: ModelVersion) -> None:
    body = {"task": "rerank", "model": "reranker", "input": {"query": "abc", "documents": ["de", "f"]}, "top_n": 1}
    answer = api.post("/v1/jobs", json=body)
    assert answer.status_code == 202
    with db.begin(tenant_id=None) as connection:
        told = "SELECT task, input_tokens, cost_tokens, (payload #>> '{}')::json AS payload FROM jobs"
        (row,) = connection.exec_driver_sql(told).mappings()
    assert (row["task"], row["input_tokens"], row["cost_tokens"]) == ("rerank", 9, 9)
    assert row["payload"] == {"input": body["input"], "top_n": 1}


def test_a_policy_takes_values_out_of_the_query_and_the_documents(
    api: httpx2.Client, db: Database, tenant: str, reranker: ModelVersion
) -> None:
    rule = {"id": "pii", "kinds": ["email"], "action": "redact", "stage": "input"}
    assert api.put("/v1/policies", json={"document": {"rules": [rule]}}).status_code == 200
    source = {"query": "mail of ann@example.com", "documents": ["bread", "ask ann@example.com or bob@example.com"]}
    made = api.post("/v1/jobs", json={"task": "rerank", "model": "reranker", "input": source}).json()
    assert jobs.get(db, tenant, made["id"]).payload["input"] == {
        "query": "mail of <EMAIL_1>",
        "documents": ["bread", "ask <EMAIL_1> or <EMAIL_2>"],
    }
