"""Requests that come at once: each gets its own outcome."""

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


def post_all(api: httpx2.Client, bodies: list[dict[str, Any]]) -> list[httpx2.Response]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: api.post("/v1/jobs", json=body), bodies))


def test_a_bad_one_among_others_fails_alone(api: httpx2.Client, db: Database) -> None:
    answers = post_all(api, [body for body, _ in OUTCOMES])
    assert [answer.status_code for answer in answers] == [status for _, status in OUTCOMES]
    assert num_jobs(db) == 2


def test_a_defect_of_one_is_not_its_neighbours(api: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(url: str, *_: object) -> None:
        raise RuntimeError(url)

    monkeypatch.setattr(submit, "check_url", check)
    answers = post_all(api, [PROMPT] * 4 + [{**PROMPT, "webhook": {"url": "https://hooks.example.com/"}}])
    assert [answer.status_code for answer in answers] == [202] * 4 + [500]


def test_a_service_that_is_away_is_told_with_a_time_to_come_back(
    server: ApiServer, api: httpx2.Client, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(name: str) -> None:
        raise Unavailable("away", retry_after_s=3)

    monkeypatch.setattr(server.runtime.catalog, "resolve", away)
    answers = post_all(api, [PROMPT] * 5)
    assert [(answer.status_code, answer.headers["retry-after"]) for answer in answers] == [(503, "3")] * 5
    assert num_jobs(db) == 0
