"""Inputs and outputs are stored only where docs/privacy.md allows it; with encryption, not even there in plain text.

A stack of real processes gets unique words in every field that takes content, on every path: success, failure, cancel,
out of memory, an engine crash, streams, batches, responses, webhooks, and refusals. Then all that the processes wrote
is searched for these words.
"""

import base64
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from sqlalchemy import text

from headrace.cli.local.home import Home
from headrace.cli.local.stack import Stack, running_stack
from headrace.store.db.database import Database
from headrace.store.settings import Settings
from tests.folders import reachable_folder
from tests.processes import free_port
from tests.workers.receiver import Answer, Receiver

OOM, RAISE = "zqoom", "zqraise"
OURS = ("api", "dispatcher", "flower", "worker")
FLOWER_PAGES = ("/", "/workers", "/tasks", "/broker", "/metrics", "/api/workers?refresh=1", "/api/tasks")


class Words:
    """Unique words, by the field that carries them."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def __call__(self, kind: str, fault: str = "") -> str:
        word = self._said.setdefault(kind, f"zq{secrets.token_hex(8)}")
        return f"{word}{fault}"

    def heard(self, kind: str, said: str) -> None:
        """Add a secret that the stack itself created and must not leak."""
        assert len(said) >= 16, said
        self._said[kind] = said

    def found_in(self, data: str) -> set[str]:
        """Return the kinds of words found in the data, as text or as tokens, which are bytes here."""
        return {kind for kind, word in self._said.items() if any(form in data for form in _forms(word))}


def _forms(word: str) -> tuple[str, ...]:
    tokens = [str(byte) for byte in word.encode()]
    return word, ",".join(tokens), ", ".join(tokens)


@dataclass(frozen=True)
class Client:
    """A client program of a tenant."""

    api: httpx2.Client
    stack: Stack
    words: Words

    def job(self, kind: str, *, fault: str = "", **fields: Any) -> str:
        """Submit a job with a unique word in each field."""
        words = self.words
        body = {
            "model": "fake",
            "input": {
                "messages": [_turn("system", words(f"{kind} system")), _turn("user", words(f"{kind} prompt", fault))]
            },
            "sampling": {"max_tokens": 48, "ignore_eos": True},
            "metadata": {"order": words(f"{kind} metadata")},
            **fields,
        }
        return str(self.api.post("/v1/jobs", json=body).raise_for_status().json()["id"])

    def ended(self, job_id: str) -> dict[str, Any]:
        """Wait for a job's end, and keep the processes alive meanwhile."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.stack.supervisor.tend()
            found: dict[str, Any] = self.api.get(f"/v1/jobs/{job_id}", params={"wait": 1}).raise_for_status().json()
            if found["completed_at"] is not None:
                return found
        raise AssertionError(f"{job_id} does not end")


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@dataclass(frozen=True)
class Told:
    """A stack that has processed all words, and the words."""

    stack: Stack
    home: Home
    words: Words
    redis_url: str
    database_url: str
    is_sealed: bool


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "told" in metafunc.fixturenames:
        # Encrypted content cannot be found in a log either, so only the stack without encryption shows leaks.
        kinds = ["plain", "sealed"] if metafunc.config.getoption("--full") else ["plain"]
        metafunc.parametrize("told", kinds, indirect=True, scope="module")


@pytest.fixture(scope="module")
def told(request: pytest.FixtureRequest) -> Iterator[Told]:
    is_sealed = request.param == "sealed"
    keys = f"k1:{base64.b64encode(os.urandom(32)).decode()}" if is_sealed else ""
    changes = {
        "HEADRACE_ENVIRONMENT": "test",
        "HEADRACE_MODEL_FAULTS": f"oom:{OOM},raise:{RAISE}",
        "HEADRACE_WEBHOOK_ALLOW_HTTP": "true",
        "HEADRACE_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
        "HEADRACE_LOG_LEVEL": "DEBUG",
        "HEADRACE_LEASE_S": "10",
        "HEADRACE_SWEEP_S": "0.2",
        "HEADRACE_ENCRYPTION_KEYS": keys,
    }
    with reachable_folder() as folder, closing(Receiver()) as receiver:
        ports = {name: free_port() for name in ("api_port", "flower_port", "worker_metrics_port")}
        settings = Settings(home=folder, encryption_keys=keys, **ports)
        with running_stack(settings, ["fake"], lambda _: None, changes) as stack:
            words = Words()
            with _tenant(stack) as api:
                _tell_everything(Client(api, stack, words), receiver)
            record = Home(folder).record()
            assert record is not None
            yield Told(stack, Home(folder), words, record.redis_url, record.database_url, is_sealed)


def _tenant(stack: Stack) -> httpx2.Client:
    return httpx2.Client(
        base_url=stack.api_url, headers={"Authorization": f"Bearer {stack.api_key}"}, timeout=60, trust_env=False
    )


def _tell_everything(client: Client, receiver: Receiver) -> None:
    words = client.words
    words.heard("key", client.stack.api_key.split("_", 2)[2])
    receiver.answer = lambda call: Answer(500 if "failing" in call.path else 204, body=words("receiver").encode())
    for path in ("good", "failing"):
        url = receiver.url(f"/{path}?token={words('webhook URL')}")
        made = client.api.post("/v1/webhook_endpoints", json={"url": url}).raise_for_status().json()
        words.heard(f"webhook secret {path}", made["secret"].removeprefix("whsec_"))
    mine = client.api.get("/v1/webhook_secret").raise_for_status().json()
    words.heard("webhook secret of jobs", mine["secret"].removeprefix("whsec_"))
    _refused(client)
    _jobs(client)
    _conversations(client)
    _batch(client)
    for path in ("/good", "/failing"):
        receiver.wait_calls(1, path)


def _refused(client: Client) -> None:
    words, api = client.words, client.api
    hostile = f'{words("path")}%0a{{"event": "forged"}}%1b[2J'
    for answer in (
        api.get(f"/v1/jobs/{hostile}"),
        api.get(f"/{hostile}", params={"q": words("query")}),
        api.get("/v1/jobs", headers={"Authorization": f"Bearer hr_{words('bad key')}_x"}),
        api.get("/v1/jobs", headers={"X-Client-Request-Id": words("header"), "traceparent": words("header")}),
        api.post("/v1/jobs", json={"model": f'{words("model")}\n{{"event": "forged"}}', "input": {"prompt": "x"}}),
        api.post("/v1/jobs", json={"model": "fake", "input": {"prompt": words("nul") + "\0"}}),
        api.post("/v1/jobs", json={"model": "fake", "input": {"prompt": "x"}, words("field"): 1}),
        api.post("/v1/jobs", content=b'{"model": "' + words("broken body").encode()),
        api.post("/v1/chat/completions", json={"model": "fake", "messages": [{"role": words("role"), "content": "x"}]}),
        api.post(
            "/v1/files", files={"file": ("a", words("refused file").encode())}, data={"purpose": words("purpose")}
        ),
    ):
        assert answer.status_code in (200, 400, 401, 404), answer.text


def _jobs(client: Client) -> None:
    words = client.words
    done = client.ended(client.job("done"))
    words.heard("output", done["output"]["text"][:40])
    long = client.job("cancelled", sampling={"max_tokens": 4000, "ignore_eos": True})
    with client.api.stream("GET", f"/v1/jobs/{long}/events") as events:
        deltas = (line for line in events.iter_lines() if line == "event: job.delta")
        for _ in zip(range(60), deltas, strict=False):
            pass  # until its output is long enough to be recognised
    client.api.post(f"/v1/jobs/{long}/cancel").raise_for_status()
    cancelled = client.ended(long)
    words.heard("partial output", cancelled["output"]["text"][:40])
    assert client.ended(client.job("memory", fault=OOM))["error"]["code"] == "out_of_memory"
    assert client.ended(client.job("dying", fault=RAISE, max_attempts=1))["status"] == "failed"


def _conversations(client: Client) -> None:
    words, api = client.words, client.api
    tool = {"name": "look", "description": words("tool"), "parameters": {"type": "object", "title": words("schema")}}
    asked = {
        "model": "fake",
        "messages": [_turn("user", words("chat"))],
        "tools": [{"type": "function", "function": tool}],
        "tool_choice": "none",
        "max_tokens": 40,
        "ignore_eos": True,
        "metadata": {"a": words("chat metadata")},
        "stop": [words("stop")],
    }
    with api.stream("POST", "/v1/chat/completions", json={**asked, "stream": True}) as stream:
        pieces = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
    words.heard("streamed", "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces)[:40])
    made = {"name": words("prompt name"), "instructions": words("template")}
    api.post("/v1/prompts", json={"instructions": made["instructions"]}).raise_for_status()
    response = api.post(
        "/v1/responses",
        json={
            "model": "fake",
            "input": words("response"),
            "instructions": words("instructions"),
            "max_output_tokens": 40,
        },
    )
    api.post(
        "/v1/responses",
        json={
            "model": "fake",
            "input": words("next"),
            "previous_response_id": response.raise_for_status().json()["id"],
        },
    ).raise_for_status()


def _batch(client: Client) -> None:
    words, api = client.words, client.api
    line = {
        "custom_id": "1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "fake", "messages": [_turn("user", words("batch line"))], "max_tokens": 40},
    }
    lines = [line, line | {"custom_id": "2", "body": {"model": "fake", "messages": [], words("batch field"): 1}}]
    content = "\n".join(map(json.dumps, lines)).encode()
    form = {"files": {"file": ("lines.jsonl", content)}, "data": {"purpose": "batch"}}
    file_id = api.post("/v1/files", **form).raise_for_status().json()["id"]  # type: ignore[arg-type]
    asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = api.post("/v1/batches", json=asked | {"metadata": {"a": words("batch metadata")}}).raise_for_status().json()
    deadline = time.monotonic() + 60
    while batch["status"] not in ("completed", "failed"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
        batch = api.get(f"/v1/batches/{batch['id']}").json()


@pytest.mark.uses("batches", "files", "responses", "templates")
def test_content_is_nowhere_but_where_it_belongs(told: Told) -> None:
    words = told.words
    found = {
        **{f"log {path.name}": words.found_in(path.read_text(errors="replace")) for path in _logs(told.home)},
        **{f"Redis {key}": words.found_in(value) for key, value in _redis(told)},
        **{f"Flower {page}": words.found_in(told_by) for page, told_by in _flower(told.stack)},
        **{url: words.found_in(httpx2.get(url, trust_env=False).text) for url in _metrics(told.stack)},
    }
    tables = {f"table {name}": words.found_in(rows) for name, rows in _tables(told.database_url)}
    files = {f"file {path}": words.found_in(path.read_text(errors="replace")) for path in _files(told.home)}
    assert {where: what for where, what in found.items() if what} == {}
    assert tables["table audit_log"] == set()
    said = set().union(*tables.values(), *files.values())
    if told.is_sealed:
        configured = {"webhook URL"}
        assert said <= configured, {where: what for where, what in (tables | files).items() if what - configured}
    else:
        assert {"done prompt", "output", "batch line", "streamed", "response"} <= said, "this test would find it"


@pytest.mark.uses("batches", "files", "responses", "templates")
def test_every_line_of_our_logs_is_one_event(told: Told) -> None:
    for path in _logs(told.home):
        if path.stem not in OURS:
            continue
        for line in path.read_text().splitlines():
            event = json.loads(line)
            assert event["event"] != "forged"
            assert all(" " <= char <= "~" for char in line)


def _logs(home: Home) -> list[Path]:
    found = sorted(path for path in home.path.rglob("*.log") if path.is_file())
    assert {*OURS, "postgres", "valkey"} <= {path.stem for path in found}
    return found


def _redis(told: Told) -> Iterator[tuple[str, str]]:
    with redis.from_url(told.redis_url) as client:
        keys = list(client.scan_iter(count=1000))
        assert any(key.startswith(b"headrace:stream:") for key in keys)
        for key in keys:
            if told.is_sealed or not key.startswith(b"headrace:stream:"):
                yield key.decode(), repr(_READ[client.type(key)](client, key))


_READ: dict[bytes, Any] = {
    b"none": lambda *_: None,  # it has expired meanwhile
    b"string": lambda client, key: client.get(key),
    b"list": lambda client, key: client.lrange(key, 0, -1),
    b"hash": lambda client, key: client.hgetall(key),
    b"set": lambda client, key: client.smembers(key),
    b"zset": lambda client, key: client.zrange(key, 0, -1),
    b"stream": lambda client, key: client.xrange(key),
}


def _flower(stack: Stack) -> Iterator[tuple[str, str]]:
    auth = (stack.flower_user, stack.flower_password)
    with httpx2.Client(base_url=stack.flower_url, auth=auth, timeout=60, trust_env=False) as client:
        for page in FLOWER_PAGES:
            yield page, client.get(page).raise_for_status().text
        for task in client.get("/api/tasks").json():
            yield task, client.get(f"/task/{task}").raise_for_status().text


def _metrics(stack: Stack) -> list[str]:
    return [f"{stack.api_url}/metrics", *stack.worker_metrics_urls]


def _tables(url: str) -> Iterator[tuple[str, str]]:
    db = Database(url, pool_size=1, application_name="tests")
    with db.begin() as connection:
        names = connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).scalars().all()
        for name in names:
            rows = connection.execute(text(f'SELECT told::text FROM "{name}" AS told')).scalars()
            yield name, "\n".join(rows)
    db.close()


def _files(home: Home) -> list[Path]:
    found = [path for path in (home.path / "files").rglob("*") if path.is_file()]
    assert found
    return found
