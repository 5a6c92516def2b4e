"""The table of errors and headers that the API promises: each row asked for, by the code it must have."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import httpx2
import pytest

from headrace.producer_api.server.errors import JobUnanswered, respond, status_of
from headrace.store.db.database import Database
from headrace.store.error_codes import JOB_CODES
from headrace.store.errors import RateLimited
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys, tenants
from tests.cases import some_of
from tests.processes import wait_for
from tests.producer_api.calling import CHAT, PROMPT, error_of, submit
from tests.producer_api.conftest import CONTEXT_WINDOW, MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer, serving
from tests.refusals import Naming

KEYS = "/v1/organization/api_keys"
NEVER_AGAIN = {"x-should-retry": "false"}


@dataclass(frozen=True)
class Row:
    """Expected properties of an error. ``has_wait``: it has a retry time."""

    status: int
    type: str
    headers: dict[str, str] = field(default_factory=dict)
    has_wait: bool = False


TABLE = {
    "invalid_value": Row(400, "invalid_request_error"),
    "unsupported_parameter": Row(400, "invalid_request_error"),
    "context_length_exceeded": Row(400, "invalid_request_error"),
    "webhook_url_not_allowed": Row(400, "invalid_request_error"),
    "invalid_api_key": Row(401, "authentication_error"),
    "insufficient_scope": Row(403, "permission_error"),
    "model_not_allowed": Row(403, "permission_error"),
    "tenant_disabled": Row(403, "permission_error"),
    "not_found": Row(404, "invalid_request_error"),
    "model_not_found": Row(404, "invalid_request_error"),
    "result_expired": Row(410, "invalid_request_error"),
    "last_admin_key": Row(409, "conflict_error", NEVER_AGAIN),
    "job_not_cancellable": Row(409, "conflict_error", NEVER_AGAIN),
    "job_not_ended": Row(409, "conflict_error", NEVER_AGAIN),
    "request_too_large": Row(413, "invalid_request_error"),
    "unsupported_encoding": Row(415, "invalid_request_error", {"accept-encoding": "gzip"}),
    "idempotency_key_reused": Row(422, "idempotency_error"),
    "rate_limit_exceeded": Row(429, "rate_limit_error", has_wait=True),
    "queue_full": Row(429, "rate_limit_error", has_wait=True),
    "no_worker": Row(503, "overloaded_error", has_wait=True),
    "draining": Row(503, "overloaded_error", has_wait=True),
    "sync_timeout": Row(504, "timeout_error", NEVER_AGAIN),
}


def check(response: httpx2.Response, code: str) -> None:
    """The answer is the row of this code."""
    row, error = TABLE[code], error_of(response)
    assert (error["code"], error["type"], response.status_code) == (code, row.type, row.status)
    assert row.headers.items() <= dict(response.headers).items()
    assert ("x-should-retry" in response.headers) == ("x-should-retry" in row.headers)
    assert response.headers["openai-processing-ms"].isdecimal()
    assert {name in response.headers for name in ("retry-after", "retry-after-ms")} == {row.has_wait}
    if row.has_wait:
        assert 0 < int(response.headers["retry-after-ms"]) <= 1000 * int(response.headers["retry-after"]) <= 120_000


def test_a_wait_is_no_longer_than_clients_wait() -> None:
    answer = respond(RateLimited("later", retry_after_s=7200), {"type": "http", "path": "/v1/jobs", "headers": []})
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("120", "120000")


@dataclass(frozen=True)
class Caller:
    """Clients with a valid key, a key without a scope, a disabled tenant's key, and an expired result."""

    good: httpx2.Client
    poor: httpx2.Client
    disabled: httpx2.Client
    limited: httpx2.Client
    nobody: httpx2.Client
    expired: str
    ended: str


@pytest.fixture
def caller(api: httpx2.Client, make_client: MakeClient, poor_key: str, db: Database, worker: ScriptedWorker) -> Caller:
    expired, ended = submit(api), submit(api)
    worker.succeed(worker.claim(expired))
    api.delete(f"/v1/jobs/{expired}").raise_for_status()
    worker.succeed(worker.claim(ended))
    api.post("/v1/jobs", json=PROMPT, headers={"Idempotency-Key": "k"}).raise_for_status()
    disabled = api_keys.create_key(db, api_keys.create_tenant(db, "closed"), "all", api_keys.SCOPES, actor="tests")
    tenants.set_disabled(db, "closed", disabled=True, actor="tests")
    limited = api_keys.create_key(
        db, api_keys.create_tenant(db, "new"), "admin", ["admin"], models=["other"], actor="tests"
    )
    poor, closed, restricted, nobody = (make_client(key) for key in (poor_key, disabled, limited, "hr_no_key"))
    return Caller(api, poor, closed, restricted, nobody, expired, ended)


Ask = Callable[[Caller], httpx2.Response]

ASKED: dict[str, tuple[Ask, ...]] = {
    "invalid_value": (
        lambda caller: caller.good.post("/v1/jobs", json={}),
        lambda caller: caller.good.post("/v1/chat/completions", content=b"{", headers={"content-type": "text/json"}),
        lambda caller: caller.good.get("/v1/jobs", params={"limit": 1000}),
        lambda caller: caller.good.post("/v1/jobs", json=PROMPT, headers={"OpenAI-Project": "p" * 256}),
    ),
    "unsupported_parameter": (
        lambda caller: caller.good.post("/v1/chat/completions", json=CHAT | {"best_of": 2}),
        lambda caller: caller.good.post("/v1/jobs", json=PROMPT | {"colour": "red"}),
    ),
    "context_length_exceeded": (
        lambda caller: caller.good.post("/v1/jobs", json=PROMPT | {"input": {"prompt": "x" * CONTEXT_WINDOW}}),
    ),
    "webhook_url_not_allowed": (
        lambda caller: caller.good.post("/v1/jobs", json=PROMPT | {"webhook": {"url": "https://127.0.0.1/"}}),
    ),
    "invalid_api_key": (lambda caller: caller.nobody.get("/v1/models"),),
    "insufficient_scope": (lambda caller: caller.poor.post("/v1/jobs", json=PROMPT),),
    "model_not_allowed": (
        lambda caller: caller.limited.post("/v1/chat/completions", json=CHAT),
        lambda caller: caller.limited.get("/v1/models/tiny"),
        lambda caller: caller.limited.post(KEYS, json={"name": "x", "scopes": ["jobs:read"]}),
    ),
    "tenant_disabled": (lambda caller: caller.disabled.get("/v1/models"),),
    "last_admin_key": (lambda caller: caller.limited.delete(f"{KEYS}/{caller.limited.get(KEYS).json()['first_id']}"),),
    "not_found": (
        lambda caller: caller.good.get("/v1/jobs/job_0"),
        lambda caller: caller.good.get("/v1/nowhere"),
        lambda caller: caller.poor.get(f"/v1/jobs/{caller.expired}"),
        lambda caller: caller.poor.get(f"/v1/jobs/{caller.ended}"),
    ),
    "model_not_found": (
        lambda caller: caller.good.get("/v1/models/huge"),
        lambda caller: caller.good.post("/v1/chat/completions", json=CHAT | {"model": "huge"}),
    ),
    "result_expired": (
        lambda caller: caller.good.get(f"/v1/jobs/{caller.expired}"),
        lambda caller: caller.good.get(f"/v1/jobs/{caller.expired}/events"),
        lambda caller: caller.good.post(f"/v1/jobs/{caller.expired}/cancel"),
    ),
    "job_not_ended": (lambda caller: caller.good.delete(f"/v1/jobs/{submit(caller.good)}"),),
    "job_not_cancellable": (lambda caller: caller.good.post(f"/v1/jobs/{caller.ended}/cancel"),),
    "unsupported_encoding": (
        lambda caller: caller.good.post("/v1/jobs", content=b"x", headers={"Content-Encoding": "zstd"}),
    ),
    "request_too_large": (lambda caller: caller.good.post("/v1/jobs", json={"model": "x" * (5 << 20)}),),
    "idempotency_key_reused": (
        lambda caller: caller.good.post("/v1/jobs", json=PROMPT | {"priority": 1}, headers={"Idempotency-Key": "k"}),
    ),
}


@pytest.fixture
def poor_key(db: Database) -> str:
    """Another tenant's, which may only read jobs."""
    return api_keys.create_key(db, api_keys.create_tenant(db, "poor"), "poor", ["jobs:read"], actor="tests")


def test_every_refusal_is_as_the_table_says(caller: Caller, subtests: pytest.Subtests) -> None:
    for code, asked in ASKED.items():
        for number, ask in enumerate(asked):
            with subtests.test(f"{code} {number}"):
                check(ask(caller), code)


@pytest.fixture
def tight(
    settings: Settings, model: ModelVersion, key: str
) -> Iterator[Callable[..., tuple[ApiServer, httpx2.Client]]]:
    """Servers with other settings."""
    with ExitStack() as open_servers:

        def start(**changes: object) -> tuple[ApiServer, httpx2.Client]:
            server = open_servers.enter_context(serving(settings.model_copy(update=changes)))
            headers = {"Authorization": f"Bearer {key}"}
            client = httpx2.Client(base_url=server.url, headers=headers, timeout=60)
            return server, open_servers.enter_context(client)

        yield start


def test_what_a_busy_server_says_is_as_the_table_says(
    tight: Callable[..., tuple[ApiServer, httpx2.Client]], settings: Settings, worker: ScriptedWorker
) -> None:
    _, hurried = tight(requests_per_minute=1)
    hurried.post("/v1/jobs", json=PROMPT).raise_for_status()
    refused = hurried.post("/v1/jobs", json=PROMPT)
    check(refused, "rate_limit_exceeded")
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert 0 < int(refused.headers["x-ratelimit-reset-requests"].removesuffix("ms")) <= 60_000
    _, full = tight(max_queued_jobs=1)
    check(full.post("/v1/jobs", json=PROMPT), "queue_full")
    _, strict = tight(require_worker=True)
    check(strict.post("/v1/jobs", json=PROMPT), "no_worker")
    _, waiting = tight(sync_timeout_s=0.1)
    timed_out = waiting.post("/v1/chat/completions", json=CHAT)
    check(timed_out, "sync_timeout")
    assert timed_out.headers["location"] == f"/v1/jobs/{timed_out.headers['x-job-id']}"
    assert error_of(timed_out)["job_id"] == timed_out.headers["x-job-id"]
    server, waiting = tight()
    answers: list[httpx2.Response] = []
    asking = threading.Thread(target=lambda: answers.append(waiting.post("/v1/chat/completions", json=CHAT)))
    asking.start()
    wait_for(lambda: server.runtime.metrics.jobs_accepted.collect()[0].samples, "the chat is taken in")
    server.drain()
    asking.join()
    check(answers[0], "draining")
    with (
        serving(settings) as other,
        httpx2.Client(base_url=other.url, headers=waiting.headers, timeout=60) as elsewhere,
    ):
        again = {"x-stainless-retry-count": "1"}
        asking = threading.Thread(
            target=lambda: answers.append(elsewhere.post("/v1/chat/completions", json=CHAT, headers=again))
        )
        asking.start()
        attempt = worker.claim(answers[0].headers["x-job-id"])
        worker.say(attempt, "water")
        worker.succeed(attempt)
        asking.join()
    assert (answers[1].status_code, answers[1].headers["x-job-id"]) == (200, answers[0].headers["x-job-id"])


def test_every_header_of_the_table_goes_in_and_out(api: httpx2.Client, worker: ScriptedWorker) -> None:
    sent = {
        "OpenAI-Organization": "org_1",
        "OpenAI-Project": "proj_1",
        "X-Client-Request-Id": "mine-1",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "Idempotency-Key": "once",
        "Prefer": "wait=0",
    }
    with worker.serve(lambda _: ["water"]):
        first = api.post("/v1/chat/completions", json=CHAT, headers=sent)
        again = api.post("/v1/chat/completions", json=CHAT, headers=sent)
        job = api.post("/v1/jobs", json=PROMPT, headers=sent)
    for answer in (first, again, job):
        assert answer.is_success, answer.text
        headers = answer.headers
        assert headers["x-request-id"].startswith("req_")
        assert headers["openai-processing-ms"].isdecimal()
        assert headers["x-model-version"] == "1"
        assert headers["x-job-id"].startswith("job_")
        for unit in ("requests", "tokens") if "idempotent-replayed" not in headers else ("requests",):
            limit, left = (int(headers[f"x-ratelimit-{what}-{unit}"]) for what in ("limit", "remaining"))
            assert 0 <= left < limit
            assert headers[f"x-ratelimit-reset-{unit}"].removesuffix("ms").isdecimal()
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    assert again.headers["x-job-id"] == first.headers["x-job-id"]
    assert job.headers["location"] == f"/v1/jobs/{job.headers['x-job-id']}"
    assert job.headers["preference-applied"] == "wait=0"


def test_a_callers_name_for_a_request_never_harms_it(api: httpx2.Client) -> None:
    for nonsense in ("", "x" * 600, "00-zz-01"):
        assert api.get("/v1/jobs", headers={"X-Client-Request-Id": nonsense, "traceparent": nonsense}).is_success


def test_a_job_that_failed_by_its_input_is_a_bad_request_and_one_by_the_server_is_an_error_of_the_server() -> None:
    seen_by_workers = (
        "invalid_value",
        "context_length_exceeded",
        "policy_blocked_input",
        "audio_truncated",
        "not_found",
    )
    status = {code: status_of(JobUnanswered("x", code=code, job_id="job_1")) for code in (*JOB_CODES, *seen_by_workers)}
    assert {code for code, found in status.items() if found == 400} == {
        *seen_by_workers,
        "file_gone",
        "image_unavailable",
        "policy_blocked_output",
    }
    assert {code: found for code, found in status.items() if found not in (400, 500)} == {
        "cancelled": 409,
        "deadline_exceeded": 504,
    }


@some_of(
    2,
    ("changes", "named"),
    [
        ({"steps": []}, ("`steps`", "array", "1 item")),
        ({"steps": [5]}, ("`steps[0]`", "object")),
        ({"steps": {}}, ("`steps`", "array")),
        ({"metadata": {str(n): "x" for n in range(17)}}, ("`metadata`", "object", "16")),
        (
            {"steps": [{"name": "a", "model": "m", "input": {}, "stream": "maybe"}]},
            ("`steps[0].stream`", "boolean"),
        ),
    ],
)
def test_a_complaint_about_a_body_has_the_words_of_json(
    api: httpx2.Client, changes: dict[str, object], named: tuple[str, ...]
) -> None:
    step = {"name": "a", "model": "m", "input": PROMPT}
    answer = api.post("/v1/jobs", json={"input": {}, "steps": [step], **changes})
    assert (answer.status_code, error_of(answer)["message"]) == (400, Naming(*named))
