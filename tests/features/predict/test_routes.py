"""What a request for predictions may ask, as which job it is stored, and how an error names the row and the field."""

from pathlib import Path
from typing import Any

import httpx2
import pytest

from headrace.features.predict.task import EXPLAINED_COST, MAX_ROWS, PredictRequest
from headrace.models.catalog import register
from headrace.producer_api.tasks.registry import read_task
from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.registry.models import ModelVersion
from tests.features.predict.test_torch_tabular import ROWS, build_tabular

GOOD = ROWS[0]

FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"amount": "12"}, "amount", "a number"),
    ({"amount": True}, "amount", "a number"),
    ({"amount": -1}, "amount", "from 0 to 10000"),
    ({"amount": None}, "amount", "missing"),
    ({"amount": [1]}, "amount", ""),
    ({"items": 1.5}, "items", "a whole number"),
    ({"items": 1e300}, "items", "too large"),
    ({"country": 7}, "country", "a text"),
    ({"is_new": 1}, "is_new", "true or false"),
    ({"at": "yesterday"}, "at", "2026-11-28T12:30:00Z"),
    ({"at": "2026-11-28T12:30:00"}, "at", "with an offset"),
    ({"at": 1e18}, "at", "1970-01-01"),
    ({"at": True}, "at", "or Unix seconds"),
    ({"colour": "red"}, "colour", "no feature of the model"),
]


@pytest.fixture
def fraud(db: Database, tmp_path: Path) -> ModelVersion:
    return register(db, "fraud", str(build_tabular(tmp_path / "model")), "auto", actor="tests")


def post(api: httpx2.Client, **body: Any) -> httpx2.Response:
    return api.post("/v1/tabular/predictions", json={"model": "fraud", "rows": [GOOD], **body})


@pytest.mark.usefixtures("fraud")
def test_a_wrong_row_is_named_and_nothing_is_stored(api: httpx2.Client, db: Database, tenant: str) -> None:
    for change, field, words in FIELDS:
        error = post(api, rows=[GOOD, GOOD | change]).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_value", f"rows[1].{field}"), (change, error)
        assert words in error["message"]
        native = api.post(
            "/v1/jobs", json={"task": "predict", "model": "fraud", "input": {"rows": [GOOD, GOOD | change]}}
        )
        assert native.json()["error"]["param"] == f"input.rows[1].{field}", change
    assert jobs.list_jobs(db, tenant) == []


@pytest.mark.usefixtures("fraud")
def test_a_body_of_another_shape_is_refused(api: httpx2.Client, db: Database, tenant: str) -> None:
    wide = {f"column_{number}": 1 for number in range(10_000)}
    for body, param in [
        ({"rows": []}, "rows"),
        ({"rows": [{"amount": 1}] * (MAX_ROWS + 1)}, "rows"),
        ({"rows": [wide]}, "rows[0]"),
        ({"rows": [[1, 2]]}, "rows[0]"),
        ({"explain": "please"}, "explain"),
        ({"row": [GOOD]}, "row"),
        ({"model": "tiny"}, "model"),
        ({"job": {"priority": 10}}, "job.priority"),
        ({"job": {"webhook": {"url": "https://10.0.0.1/"}}}, "job.webhook.url"),
    ]:
        answer = post(api, **body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), (param, answer.text)
    for number in (b"NaN", b"Infinity", b"1e999"):
        text = b'{"model": "fraud", "rows": [{"amount": %s, "at": 0}]}' % number
        answer = api.post("/v1/tabular/predictions", content=text, headers={"content-type": "application/json"})
        assert answer.status_code == 400, number
    assert jobs.list_jobs(db, tenant) == []


@pytest.mark.usefixtures("fraud")
def test_a_job_costs_its_rows_and_a_policy_sees_its_texts(api: httpx2.Client, db: Database, tenant: str) -> None:
    rule = {"id": "pii", "kinds": ["email"], "action": "redact", "stage": "input"}
    assert api.put("/v1/policies", json={"document": {"rules": [rule]}}).status_code == 200
    source = {"rows": [*ROWS, GOOD | {"country": "ann@example.com"}]}
    made = api.post("/v1/jobs", json={"task": "predict", "model": "fraud", "input": source, "explain": True})
    job = jobs.get(db, tenant, made.json()["id"])
    assert (job.task, job.input_tokens, job.payload["explain"]) == ("predict", (len(ROWS) + 1) * EXPLAINED_COST, True)
    assert job.payload["input"]["rows"] == [*ROWS, GOOD | {"country": "<EMAIL_1>"}]


def test_a_line_of_a_batch_is_the_same_job() -> None:
    parsed = read_task("/v1/tabular/predictions", {"model": "fraud", "rows": [GOOD], "explain": True})
    assert parsed.job == PredictRequest.model_validate(
        {
            "task": "predict",
            "model": "fraud",
            "input": {"rows": [GOOD]},
            "explain": True,
            "service_class": "interactive",
        }
    )
