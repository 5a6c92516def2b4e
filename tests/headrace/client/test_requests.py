"""Each method of both clients: its exact request, and its result for an answer."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from headrace.client import (
    ApiUnavailable,
    Client,
    ClientError,
    JobUnsuccessful,
    StreamEvent,
    WaitExpired,
)
from headrace.client.answers import error_of
from headrace.client.connection import connection_options
from headrace.client.errors import TooManyRequests
from headrace.client.retries import Retries
from tests.cli.client.played import PlayedApi, played_api
from tests.headrace.client.conftest import Connect
from tests.headrace.client.test_repeats import JOB


@pytest.mark.parametrize(
    ("call", "answer", "sent", "found"),
    [
        (
            lambda c: c.submit(model="m", input={"prompt": "hi"}, idempotency_key="mine"),
            JOB,
            ("POST", "/v1/jobs", {"model": "m", "input": {"prompt": "hi"}}),
            JOB,
        ),
        (lambda c: c.job("job_1"), JOB, ("GET", "/v1/jobs/job_1", None), JOB),
        (lambda c: c.job("job_1", wait_s=7), JOB, ("GET", "/v1/jobs/job_1?wait=7", None), JOB),
        (lambda c: c.wait("job_1"), JOB, ("GET", "/v1/jobs/job_1?wait=30.0", None), JOB),
        (
            lambda c: c.result("job_1"),
            JOB | {"output": {"text": "x"}},
            ("GET", "/v1/jobs/job_1?wait=30.0", None),
            {"text": "x"},
        ),
        (lambda c: c.cancel("job_1"), JOB, ("POST", "/v1/jobs/job_1/cancel", None), JOB),
        (lambda c: c.delete("job_1"), (204, {}), ("DELETE", "/v1/jobs/job_1", None), None),
        (
            lambda c: c.jobs(),
            {"data": [], "has_more": False},
            ("GET", "/v1/jobs", None),
            {"data": [], "has_more": False},
        ),
        (
            lambda c: c.jobs(
                status="failed",
                task="embed",
                model="m@1",
                created_after=5,
                metadata={"a": "b"},
                limit=3,
                after="job_0",
                order="asc",
            ),
            {"data": [JOB], "has_more": True},
            (
                "GET",
                "/v1/jobs?status=failed&task=embed&model=m@1&created_after=5&limit=3&after=job_0&order=asc&metadata[a]=b",
                None,
            ),
            {"data": [JOB], "has_more": True},
        ),
        (
            lambda c: c.timeline("job_1"),
            {"events": [{"kind": "queued"}]},
            ("GET", "/v1/jobs/job_1/timeline", None),
            [{"kind": "queued"}],
        ),
        (
            lambda c: c.request("post", "/v1/x", params={"a": 1, "b": None}, json={"c": [2]}),
            {"d": 3},
            ("POST", "/v1/x?a=1", {"c": [2]}),
            {"d": 3},
        ),
    ],
)
def test_a_method_sends_one_request(
    connect: Connect, call: Callable[[Client], Any], answer: Any, sent: tuple[str, str, Any], found: Any
) -> None:
    with played_api() as (api, url):
        api.answers = {f"{sent[0]} {sent[1].partition('?')[0]}": answer}
        assert call(connect(f"{url}/", "hr_key")) == found
    assert api.requests == [sent]
    assert api.headers[0]["user-agent"] == "headrace-client"
    assert api.keys == {"Bearer hr_key"}


def test_a_key_of_the_caller_is_sent_and_else_one_for_each_submit(connect: Connect) -> None:
    with played_api() as (api, url):
        api.answers = {"POST /v1/jobs": JOB, "POST /v1/x": {}}
        client = connect(url, "k")
        client.submit(model="m", input={}, idempotency_key="mine")
        client.submit(model="m", input={})
        client.submit(model="m", input={})
        client.request("POST", "/v1/x", idempotency_key="other")
        client.request("POST", "/v1/x")
    first, second, third, other, none = (headers.get("idempotency-key") for headers in api.headers)
    assert (first, other, none) == ("mine", "other", None)
    assert len({second, third, None}) == 3


def sequence(api: PlayedApi, route: str, *answers: Any) -> None:
    left = iter(answers)
    api.answers = {route: lambda: next(left)}


@pytest.mark.parametrize(
    ("method", "options", "num_requests"),
    [("GET", {}, 2), ("PUT", {}, 2), ("DELETE", {}, 2), ("POST", {"idempotency_key": "k"}, 2), ("POST", {}, 1)],
)
def test_only_what_can_be_repeated_is(
    connect: Connect, method: str, options: dict[str, str], num_requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.client.retries.FIRST_S", 0.001)
    refused = (503, {"error": {"message": "not now", "code": "x", "param": None}})
    with played_api() as (api, url):
        sequence(api, f"{method} /v1/x", refused, {"done": 1})
        client = connect(url, "k")
        if num_requests == 1:
            with pytest.raises(ApiUnavailable, match="not now"):
                client.request(method, "/v1/x", **options)
        else:
            assert client.request(method, "/v1/x", **options) == {"done": 1}
    assert len(api.requests) == num_requests


def test_a_cancel_whose_answer_was_lost_finds_the_job_cancelled(connect: Connect) -> None:
    refused = (409, {"error": {"message": "it is over", "code": "job_not_cancellable", "param": None}})
    with played_api() as (api, url):
        api.answers = {"POST /v1/jobs/job_1/cancel": refused, "GET /v1/jobs/job_1": JOB | {"status": "cancelled"}}
        client = connect(url, "k")
        assert client.cancel("job_1")["status"] == "cancelled"
        api.answers = {"POST /v1/jobs/job_1/cancel": refused, "GET /v1/jobs/job_1": JOB}
        with pytest.raises(ClientError, match="it is over"):
            client.cancel("job_1")


def test_a_wait_and_a_result_that_fail_have_the_job(connect: Connect) -> None:
    failed = JOB | {"status": "failed", "output": None, "error": {"code": "poison", "message": "it died"}}
    queued = JOB | {"status": "queued"}
    with played_api() as (api, url):
        api.answers = {"GET /v1/jobs/job_1": failed, "GET /v1/jobs/job_2": queued}
        client = connect(url, "k")
        assert client.wait("job_1") == failed
        with pytest.raises(JobUnsuccessful) as unsuccessful:
            client.result("job_1")
        with pytest.raises(WaitExpired) as expired:
            client.wait("job_2", timeout_s=0.001)
        api.answers = {"GET /v1/jobs/job_1": JOB | {"output": None, "error": None}}
        with pytest.raises(JobUnsuccessful, match="job_1 succeeded"):
            client.result("job_1")
    assert (unsuccessful.value.message, unsuccessful.value.code) == ("job_1 failed: it died", "poison")
    assert unsuccessful.value.job == failed
    assert expired.value.job == queued
    assert all(named in expired.value.message for named in ("job_1", "queued", "0.001 s"))


@pytest.mark.parametrize(
    ("status", "headers", "is_transient", "retry_after_s"),
    [
        (429, {"retry-after": "7"}, True, 7.0),
        (429, {"retry-after-ms": "1500", "retry-after": "7"}, True, 1.5),
        (429, {"x-should-retry": "false"}, False, None),
        (502, {"retry-after": "soon"}, True, None),
        (503, {}, True, None),
        (504, {}, True, None),
        (500, {}, False, None),
        (408, {}, False, None),
    ],
)
def test_an_answer_says_whether_and_when_a_repeat_helps(
    status: int, headers: dict[str, str], is_transient: bool, retry_after_s: float | None
) -> None:
    error = error_of(httpx2.Response(status, headers=headers, content=b"{}"))
    assert (error.is_transient, error.retry_after_s, error.status) == (is_transient, retry_after_s, status)


def test_pauses_double_up_to_a_bound_and_a_server_may_ask_for_more() -> None:
    warnings: list[str] = []
    retries = Retries(8, warnings.append)
    error = ClientError("busy", is_transient=True)
    pauses = [retries.pause_s(error) for _ in range(8)]
    longest = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, longest, strict=True))
    assert warnings == [f"busy; again in {pause:.0f} s" for pause in pauses if pause >= 1]
    with pytest.raises(ClientError, match="busy"):
        retries.pause_s(error)
    retries.reset()
    assert retries.pause_s(ClientError("busy", is_transient=True, retry_after_s=120)) == 120
    with pytest.raises(ClientError):
        retries.pause_s(ClientError("busy", is_transient=True, retry_after_s=120.1))
    with pytest.raises(TooManyRequests):
        retries.pause_s(TooManyRequests("over", is_transient=False))


def test_only_this_machines_servers_are_reached_without_a_proxy() -> None:
    options = {
        url: connection_options(url, "k") for url in ("http://localhost:1/", "http://[::1]", "https://a.example/")
    }
    assert [one["trust_env"] for one in options.values()] == [False, False, True]
    assert [one["base_url"] for one in options.values()] == ["http://localhost:1", "http://[::1]", "https://a.example"]
    assert (options["https://a.example/"]["timeout"].read, options["https://a.example/"]["timeout"].connect) == (90, 5)


@pytest.mark.parametrize(
    ("name", "data", "text", "is_restart", "is_terminal"),
    [
        ("job.delta", {"text": "a", "choice": 2}, "a", False, False),
        ("job.restarted", {"text": "b"}, "b", True, False),
        ("job.queued", {"text": "c"}, "", False, False),
        *(
            (f"job.{status}", {"text": "d"}, "", False, True)
            for status in ("succeeded", "failed", "cancelled", "expired")
        ),
        ("job.note", {}, "", False, False),
    ],
)
def test_an_event_tells_what_it_is(
    name: str, data: dict[str, Any], text: str, is_restart: bool, is_terminal: bool
) -> None:
    event = StreamEvent("1-1", name, data)
    assert (event.text, event.is_restart, event.is_terminal) == (text, is_restart, is_terminal)
    assert event.choice == data.get("choice", 0)


def test_an_answer_without_the_fields_of_a_job_is_not_headraces(connect: Connect) -> None:
    with played_api() as (api, url):
        api.answers = {"GET /v1/jobs/job_1": {"id": "job_1"}, "GET /v1/jobs": {"data": []}, "GET /v1/x": {}}
        client = connect(url, "k")
        for call in (lambda: client.job("job_1"), client.jobs):
            with pytest.raises(ApiUnavailable, match=url):
                call()
        assert json.dumps(client.request("GET", "/v1/x")) == "{}"
