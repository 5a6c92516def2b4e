"""Requests that go through the submission's steps together: each gets its own outcome."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from headrace.producer_api.submission import submit
from headrace.store.db.database import Database
from headrace.store.errors import Unavailable
from tests.producer_api.calling import PROMPT, num_jobs
from tests.producer_api.serving import ApiServer

OUTCOMES: list[tuple[dict[str, Any], int]] = [
    (PROMPT, 202),
    ({**PROMPT, "model": "unknown"}, 404),
    ({**PROMPT, "sampling": {"max_tokens": 512}}, 400),
    ({**PROMPT, "webhook": {"url": "https://127.0.0.1/"}}, 400),
    ({**PROMPT, "metadata": {"second": "2"}}, 202),
]


@pytest.fixture
def together(server: ApiServer, api: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let five that come at once be one wave; return the list of the waves' sizes."""
    sizes: list[int] = []
    submissions = server.runtime.submissions
    api.post("/v1/jobs", json=PROMPT).raise_for_status()  # the tokenizer is loaded, and a wave has begun
    monkeypatch.setattr(submissions._batches, "_next_at", time.monotonic() + 3600)
    monkeypatch.setattr(submissions._batches, "_next_urgent_at", float("inf"))  # an idle tenant does not start it early
    monkeypatch.setattr(submissions._batches, "_enough", len(OUTCOMES))
    submit_all = submissions._batches._run

    def counted(drafts: Any) -> Any:
        sizes.append(len(drafts))
        return submit_all(drafts)

    monkeypatch.setattr(submissions._batches, "_run", counted)
    return sizes


def post_all(api: httpx2.Client, bodies: list[dict[str, Any]]) -> list[httpx2.Response]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: api.post("/v1/jobs", json=body), bodies))


def known(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat an unknown model as loaded, so that it shares the wave."""
    monkeypatch.setattr(server.runtime.catalog, "is_loaded", lambda _name, **_: True)


def test_a_bad_one_among_others_fails_alone(
    server: ApiServer, api: httpx2.Client, db: Database, together: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    known(server, monkeypatch)
    answers = post_all(api, [body for body, _ in OUTCOMES])
    assert [answer.status_code for answer in answers] == [status for _, status in OUTCOMES]
    assert together == [5]
    assert num_jobs(db) == 1 + 2


def test_a_defect_of_one_is_not_its_neighbours(
    server: ApiServer, api: httpx2.Client, together: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(url: str, *_: object) -> None:
        raise RuntimeError(url)

    monkeypatch.setattr(submit, "check_url", check)
    answers = post_all(api, [PROMPT] * 4 + [{**PROMPT, "webhook": {"url": "https://hooks.example.com/"}}])
    assert [answer.status_code for answer in answers] == [202] * 4 + [500]
    assert together == [5]


def test_a_service_that_is_away_is_asked_once_for_all(
    server: ApiServer, api: httpx2.Client, db: Database, together: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def away(name: str) -> None:
        asked.append(name)
        raise Unavailable("away", retry_after_s=3)

    known(server, monkeypatch)
    monkeypatch.setattr(server.runtime.catalog, "route", away)
    answers = post_all(api, [PROMPT] * 5)
    assert [(answer.status_code, answer.headers["retry-after"]) for answer in answers] == [(503, "3")] * 5
    assert len(asked) == 1
    assert num_jobs(db) == 1


@pytest.mark.parametrize(
    "request_", [{"headers": {"x-stainless-retry-count": "1"}}, {"json": {**PROMPT, "input": {"prompt": " " * 5_000}}}]
)
def test_one_that_would_hold_up_others_goes_alone(
    api: httpx2.Client, together: list[int], request_: dict[str, Any]
) -> None:
    answer = api.post("/v1/jobs", **{"json": PROMPT, **request_})
    assert answer.status_code in (202, 400), answer.text
    assert together == []


@pytest.mark.usefixtures("encoder")
def test_one_to_another_model_starts_a_batch_at_once(
    server: ApiServer, api: httpx2.Client, together: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    submissions = server.runtime.submissions
    (last,) = submissions._tenants._last.values()
    monkeypatch.setattr(submissions._tenants, "_clock", lambda: last)
    monkeypatch.setattr(submissions._batches, "_next_urgent_at", 0.0)
    job = {"task": "embed", "model": "org/vectors", "input": {"texts": ["a mill"]}}
    assert api.post("/v1/jobs", json=job, timeout=30).status_code == 202
    assert together == [1]
