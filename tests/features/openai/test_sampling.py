"""Every face takes what a request leaves out from the version's record, then from the model's own file."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.registry import models
from headrace.store.registry.models import ModelVersion
from tests.producer_api.calling import CHAT, PROMPT, error_of
from tests.producer_api.scripted_worker import ScriptedWorker

GENERATION = b'{"do_sample": true, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1, "eos_token_id": 2}'
SET = {"temperature": 0.2, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}
REST = {"presence_penalty": 0.0, "frequency_penalty": 0.0}
RESPONSE = {"model": "tiny", "input": "hello"}


@pytest.fixture
def model(db: Database) -> ModelVersion:
    found = models.register_version(
        db,
        model="tiny",
        runner="fake",
        source="fake:tiny",
        digest="0" * 64,
        dtype="float32",
        context_window=512,
        files={"generation_config.json": GENERATION},
        actor="tests",
    )
    return models.set_sampling(db, "tiny", found.version, SamplingDefaults(temperature=0.2, top_p=0.9), "tests")


@pytest.fixture
def stored(db: Database, tenant: str) -> Callable[[httpx2.Response], dict[str, Any]]:
    """The stored sampling parameters of the job behind a response."""

    def read(answer: httpx2.Response) -> dict[str, Any]:
        assert answer.is_success, answer.text
        sampling = jobs.get(db, tenant, answer.headers["x-job-id"]).payload["sampling"]
        return {name: sampling[name] for name in SamplingDefaults.model_fields}

    return read


FACES = {
    "native": ("/v1/jobs", PROMPT, lambda given: {"sampling": given}),
    "chat": ("/v1/chat/completions", CHAT, lambda given: given),
    "completion": ("/v1/completions", {"model": "tiny", "prompt": "hello"}, lambda given: given),
    "response": ("/v1/responses", RESPONSE, lambda given: given),
    "message": ("/v1/messages", CHAT | {"max_tokens": 8}, lambda given: given),
}


@pytest.mark.uses("anthropic")
def test_every_face_stores_what_is_set_where_the_request_does_not_say(
    api: httpx2.Client,
    worker: ScriptedWorker,
    stored: Callable[[httpx2.Response], dict[str, Any]],
    subtests: pytest.Subtests,
) -> None:
    with worker.serve(lambda _: ("hi",)):
        for face, (path, body, put) in FACES.items():
            with subtests.test(face):
                assert stored(api.post(path, json=body)) == SET | REST
                given = {"temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.5}
                assert stored(api.post(path, json=body | put(given))) == SET | REST | given


def test_a_response_says_what_was_used(openai: OpenAI, worker: ScriptedWorker) -> None:
    with worker.serve(lambda _: ("hi",)):
        answer = openai.responses.create(model="tiny", input="hello", top_p=0.5)
    assert (answer.temperature, answer.top_p) == (0.2, 0.5)


def test_a_record_that_is_set_again_holds_for_jobs_from_then_on_and_is_on_record(
    api: httpx2.Client, db: Database, stored: Callable[[httpx2.Response], dict[str, Any]]
) -> None:
    before = api.post("/v1/jobs", json=PROMPT)
    models.set_sampling(db, "tiny", 1, SamplingDefaults(temperature=0.0), "mia")
    shown = api.get("/v1/models/tiny").json()["sampling"]
    # What a model string means is kept for two seconds.
    assert {name: value for name, value in shown.items() if value is not None} == {
        "temperature": 0.0,
        "top_k": 20,
        "repetition_penalty": 1.1,
    }
    assert stored(before)["temperature"] == 0.2
    with db.begin() as connection:
        last = text("SELECT actor, action, resource, detail FROM audit_log ORDER BY id DESC LIMIT 1")
        assert connection.execute(last).one() == ("mia", "model.sampling_set", "tiny@1", {"temperature": "0.0"})


def test_a_value_that_is_named_is_another_request_than_the_default(api: httpx2.Client) -> None:
    once = {"Idempotency-Key": "once"}
    assert api.post("/v1/jobs", json=PROMPT, headers=once).status_code == 202
    named = api.post("/v1/jobs", json=PROMPT | {"sampling": {"temperature": 1.0}}, headers=once)
    assert error_of(named)["code"] == "idempotency_key_reused"
    assert api.post("/v1/jobs", json=PROMPT | {"sampling": {}}, headers=once).headers["idempotent-replayed"] == "true"
