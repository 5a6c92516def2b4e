"""A package of ``headrace new-task`` beside live processes: jobs, events, its own URL, batches, policy and faults."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from headrace.client import Client, RequestRefused
from headrace.features.policy import policies
from headrace.store.db.database import Database
from headrace.store.payloads.job_payload import EVERY_MODEL
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.own_tasks import new_package
from tests.processes import StartProcess, python, wait_for
from tests.producer_api.serving import environment, start_api, url_of
from tests.refusals import Naming
from tests.workers.conftest import worker_command, worker_environment

FAULTY = """
from headrace.tasks import TaskError
from mood_task import runner

def load(folder):
    plain = runner.load(folder)

    def run(batch):
        if any("crash" in one.text for one in batch):
            raise ZeroDivisionError("secret text")
        found = plain(batch)
        return [TaskError("no verdict on refusals") if "refuse" in one.text else out for one, out in zip(batch, found)]

    return run
"""

# A second task of the package, which no model runs: each call waits until two are there.
CALLS = """
from threading import Barrier

from headrace.tasks import Task
from pydantic import BaseModel

class Text(BaseModel):
    text: str

ASK = Task(name="ask", input=Text, output=Text, runner="mood_task.calls:load", example={"text": "x"}, is_call=True)

def load(folder):
    both = Barrier(2)

    def run(batch):
        (one,) = batch
        both.wait(60)
        return [{"text": f"asked {one.text}"}]

    return run
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The package ``mood``, with a runner that fails for some words, and an output with text; and the task ``ask``."""
    folder = new_package(tmp_path / "mood", "mood")
    (folder / "mood_task" / "calls.py").write_text(CALLS)
    for entries in folder.glob("*.dist-info/entry_points.txt"):
        entries.write_text(f"{entries.read_text()}ask = mood_task.calls:ASK\n")
    (folder / "mood_task" / "faulty.py").write_text(FAULTY)
    task = folder / "mood_task" / "__init__.py"
    task.write_text(
        task.read_text().replace("runner:load", "faulty:load").replace("output_texts=()", "output_texts=None")
    )
    return folder


@pytest.fixture
def key(db: Database) -> str:
    return api_keys.create_key(
        db, api_keys.create_tenant(db, "acme"), "tests", api_keys.SCOPES - {"admin"}, actor="tests"
    )


@pytest.fixture
def url(settings: Settings, package: Path, start_process: StartProcess) -> Iterator[str]:
    """The address of an API process beside worker processes of the versions mood@1 and ask@1."""
    path = {"PYTHONPATH": str(package)}
    api = environment(settings, **path)
    given = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url} | path
    for name, source in (("mood", ["--source", str(package / "model")]), ("ask", [])):
        register = ["-m", "headrace.models.catalog", "register", name, "--task", name, *source]
        registering = start_process(python(*register), given | {"HEADRACE_HOME": str(settings.home)})
        assert registering.wait_exit() == 0, registering.log()
        assert registering.log().strip() == f"{name}@1"
    server = start_api(start_process, api)
    running = [start_process(worker_command(name), worker_environment(settings, {}) | path) for name in ("mood", "ask")]
    for worker in running:
        worker.wait_event("worker_ready")
    yield url_of(server)
    for worker in running:
        assert worker.exit_code is None, worker.log()


@pytest.fixture
def client(url: str, key: str) -> Iterator[Client]:
    with Client(url, key) as found:
        yield found


def ask(client: Client, text: str) -> dict[str, Any]:
    """The job of a text, when it has ended."""
    job = client.submit(task="mood", model="mood", input={"text": text})
    return dict(client.wait(job["id"]))


@pytest.mark.full
def test_a_task_of_its_own_package_is_a_task_like_any_other(client: Client, url: str, key: str, db: Database) -> None:
    good = ask(client, "what a lovely mill")
    assert good["output"] == {"label": "positive", "score": 1.0}
    assert good["usage"]["input_tokens"] == 1 + len("what a lovely mill") // 4
    names = [event.name for event in client.stream(good["id"])]
    assert names[-1] == "job.succeeded"

    answer = client.request("POST", "/v1/tasks/mood", json={"model": "mood", "input": {"text": "stale bread"}})
    assert answer["output"] == {"label": "negative", "score": -1.0}
    assert answer["model"] == "mood@1"
    described = client.request("GET", "/openapi.json")
    assert "/v1/tasks/mood" in described["paths"]
    assert "mood" in described["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["examples"]

    _check_refusals(client)
    _check_faults(client)
    _check_batch(url, key)
    _check_policy(url, db)
    _check_calls(client)


def _check_refusals(client: Client) -> None:
    for given, param in (
        ({"text": ""}, "input.text"),
        ({"text": "x", "tone": 1}, "input.tone"),
        ({"text": "x" * 99_999}, "input"),
    ):
        for path, task in (("/v1/jobs", {"task": "mood"}), ("/v1/tasks/mood", {})):
            with pytest.raises(RequestRefused) as refused:
                client.request("POST", path, json={**task, "model": "mood", "input": given})
            assert refused.value.param == param


def _check_faults(client: Client) -> None:
    texts = ["lovely", "crash", "stale", "refuse", *["lovely"] * 8]
    jobs = [client.submit(task="mood", model="mood", input={"text": one})["id"] for one in texts]
    ended = [client.wait(one) for one in jobs]
    assert [one["status"] for one in ended] == ["failed" if t in ("crash", "refuse") else "succeeded" for t in texts]
    crashed, refused = (ended[texts.index(one)]["error"] for one in ("crash", "refuse"))
    assert crashed["code"] == refused["code"] == "runner_failed"
    assert crashed["message"] == Naming("mood", "ZeroDivisionError (faulty.py:10)")
    assert refused["message"] == "no verdict on refusals"
    assert crashed["attempt"] == 1


def _check_batch(url: str, key: str) -> None:
    lines = [
        {
            "custom_id": text,
            "method": "POST",
            "url": "/v1/tasks/mood",
            "body": {"model": "mood", "input": {"text": text}},
        }
        for text in ("lovely", "crash")
    ]
    with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as openai:
        file = openai.files.create(file="\n".join(map(json.dumps, lines)).encode(), purpose="batch")
        made = openai.batches.create(input_file_id=file.id, endpoint="/v1/tasks/mood", completion_window="24h")
        wait_for(lambda: openai.batches.retrieve(made.id).status == "completed", "the batch ended")
        ended = openai.batches.retrieve(made.id)
        (line,) = map(json.loads, openai.files.content(ended.output_file_id or "").text.splitlines())
        (failed,) = map(json.loads, openai.files.content(ended.error_file_id or "").text.splitlines())
    assert line["response"]["body"]["output"]["label"] == "positive"
    assert failed["custom_id"] == "crash"


def _check_policy(url: str, db: Database) -> None:
    tenant_id = api_keys.create_tenant(db, "guarded")
    document = {
        "version": 1,
        "rules": [
            {"id": "mail", "action": "redact", "stage": "input", "kinds": ["email"]},
            {"id": "no-answers", "action": "block", "stage": "input", "deny": {"phrases": ["asked"]}},
            {"id": "no-praise", "action": "block", "stage": "output", "deny": {"phrases": ["positive"]}},
            {"id": "no-blame", "action": "mask", "stage": "output", "deny": {"phrases": ["negative"]}},
        ],
    }
    policies.put(db, tenant_id, EVERY_MODEL, document, "tests")
    key = api_keys.create_key(db, tenant_id, "tests", ["jobs:read", "jobs:write"], actor="tests")
    with Client(url, key) as guarded:
        plain = ask(guarded, "stale, says ann@example.com")
        body = guarded.request("GET", f"/v1/jobs/{plain['id']}/request")["body"]
        assert body["input"] == {"text": "stale, says <EMAIL_1>"}
        assert plain["output"]["label"] == "neutral"
        masked = ask(guarded, "stale")["output"]
        assert masked["label"] == "********"
        assert masked["policy"][0]["rule"] == "no-blame"
        assert ask(guarded, "lovely")["error"]["code"] == "policy_blocked_output"
        _check_what_calls_return(guarded)


def _check_what_calls_return(guarded: Client) -> None:
    """Two jobs, because each call needs another one: what they return is refused as input of the next step."""
    steps = [
        {"name": "ask", "task": "ask", "model": "ask", "input": {"text": "the mill"}},
        {
            "name": "mood",
            "task": "mood",
            "model": "mood",
            "needs": ["ask"],
            "input": {"text": {"$from": "ask.output.text"}},
        },
    ]
    sent = [guarded.request("POST", "/v1/jobs", json={"steps": steps})["id"] for _ in range(2)]
    errors = [guarded.wait(job_id)["error"] for job_id in sent]
    assert [(error["code"], error["step"]) for error in errors] == [("policy_blocked_input", "mood")] * 2


def _check_calls(client: Client) -> None:
    """Two jobs of a step with a model and one without, side by side: each call needs the other one to end."""
    steps = [
        {"name": "mood", "task": "mood", "model": "mood", "input": {"text": {"$from": "input.text"}}},
        {
            "name": "ask",
            "task": "ask",
            "model": "ask",
            "needs": ["mood"],
            "input": {"text": {"$from": "mood.output.label"}},
        },
    ]
    sent = [
        client.request("POST", "/v1/jobs", json={"input": {"text": text}, "steps": steps})["id"]
        for text in ("lovely", "stale")
    ]
    assert [client.wait(job_id)["output"] for job_id in sent] == [
        {"text": "asked positive"},
        {"text": "asked negative"},
    ]
