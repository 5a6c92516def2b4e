"""What a request for recommendations may ask, and how an error names the field that was sent."""

from typing import Any

import httpx2
import pytest

from headrace.features.recommend.task import RecommendPayload
from headrace.models.catalog import register
from headrace.producer_api.tasks.registry import read_task
from headrace.store.db.database import Database
from headrace.store.jobs import jobs

HISTORY = [{"id": "item-1"}, {"id": "item-2", "weight": 0.5}]
VECTOR = [0.5] * 8

REFUSED: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"history": HISTORY, "vector": VECTOR}, None),
    ({"vector": VECTOR[1:]}, "vector"),
    ({"vector": [1e16, *VECTOR[1:]]}, "vector[0]"),
    ({"features": {"age": 30}}, "features"),
    ({"history": []}, "history"),
    ({"history": [{"id": "item-1", "weight": 0}]}, "history[0].weight"),
    ({"history": HISTORY, "top_k": 0}, "top_k"),
    ({"history": HISTORY, "top_k": 5000}, "top_k"),
    ({"history": HISTORY, "filter": {"only": ["a"]}}, "filter.only"),
    (
        {"history": HISTORY, "filter": {"where": [{"attribute": "colour", "one_of": ["red"]}]}},
        "filter.where[0].attribute",
    ),
    ({"history": HISTORY, "filter": {"where": [{"attribute": "price", "one_of": ["red"]}]}}, "filter.where[0].one_of"),
    ({"history": HISTORY, "filter": {"where": [{"attribute": "category", "maximum": 3}]}}, "filter.where[0]"),
    ({"history": HISTORY, "filter": {"where": [{"attribute": "price"}]}}, "filter.where[0]"),
]


@pytest.fixture(autouse=True)
def shop(db: Database) -> None:
    register(db, "shop", "fake-recommender", "auto", actor="tests")


def test_what_is_refused_names_what_was_sent_and_nothing_is_stored(
    api: httpx2.Client, db: Database, tenant: str
) -> None:
    for body, param in REFUSED:
        answer = api.post("/v1/recommendations", json={"model": "shop", **body})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), (body, error)
        assert "input." not in error["message"]
    assert jobs.list_jobs(db, tenant) == []


def test_the_native_job_and_a_line_of_a_batch_are_the_same(api: httpx2.Client, db: Database, tenant: str) -> None:
    wanted = {"exclude_ids": ["item-9"], "where": [{"attribute": "price", "maximum": 5}]}
    body = {"model": "shop", "filter": wanted, "top_k": 3, "exclude_history": False}
    made = api.post("/v1/jobs", json={"task": "recommend", "input": {"history": HISTORY}, **body})
    job = jobs.get(db, tenant, made.json()["id"])
    order = read_task("/v1/recommendations", {"history": HISTORY, **body}).job
    fields = order.model_dump(include=set(RecommendPayload.model_fields))
    assert RecommendPayload.model_validate(job.payload) == RecommendPayload.model_validate(fields)
    assert job.payload["filter"]["exclude_ids"] == ["item-9"]
    assert (job.task, job.input_tokens, job.payload["top_k"]) == ("recommend", 1, 3)


def test_a_policy_reads_the_filter(api: httpx2.Client) -> None:
    rule = {"id": "pii", "kinds": ["email"], "action": "redact", "stage": "input"}
    assert api.put("/v1/policies", json={"document": {"rules": [rule]}}).status_code == 200
    body = {"model": "shop", "history": HISTORY, "filter": {"exclude_ids": ["ann@example.com"]}}
    assert api.post("/v1/recommendations", json=body).json()["error"]["code"] == "policy_blocked_input"
