"""Requests refused by rate limits: requests, tokens and concurrent jobs."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from headrace.producer_api.access.rate_limits import LimitCache, RateLimits
from headrace.store.db.database import Database
from headrace.store.errors import RateLimited
from headrace.store.redis.connection import connect
from headrace.store.redis.rate_limiter import Limiter
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys, quotas
from tests.cases import some_of
from tests.processes import wait_for
from tests.producer_api.calling import CHAT, PROMPT, error_of, num_jobs
from tests.producer_api.serving import serving


def _post_until_refused(settings: Settings, key: str, limits: dict[str, Any], most: int = 10) -> list[httpx2.Response]:
    with serving(settings.model_copy(update=limits)) as server:
        headers = {"Authorization": f"Bearer {key}"}
        return [httpx2.post(f"{server.url}/v1/jobs", json=PROMPT, headers=headers, timeout=60) for _ in range(most)]


@some_of(
    3,
    ("limits", "num_accepted", "code"),
    [
        ({"requests_per_minute": 3}, 3, "rate_limit_exceeded"),
        ({"tokens_per_minute": 12}, 2, "rate_limit_exceeded"),
        ({"max_queued_jobs_per_tenant": 4}, 4, "queue_full"),
        ({"max_queued_jobs": 5}, 5, "queue_full"),
        ({"max_queued_tokens_per_tenant": 1100}, 2, "queue_full"),
        ({"max_queued_tokens": 1600}, 3, "queue_full"),
    ],
)
@pytest.mark.usefixtures("model")
def test_a_limit_refuses_what_is_over_it(
    settings: Settings, key: str, db: Database, limits: dict[str, Any], num_accepted: int, code: str
) -> None:
    responses = _post_until_refused(settings, key, limits)
    assert [response.status_code for response in responses] == [202] * num_accepted + [429] * (10 - num_accepted)
    refused = responses[-1]
    error = error_of(refused)
    assert (error["code"], error["type"]) == (code, "rate_limit_error")
    assert 1 <= int(refused.headers["retry-after"]) <= 120
    assert 1 <= int(refused.headers["retry-after-ms"]) <= int(refused.headers["retry-after"]) * 1000
    assert num_jobs(db) == num_accepted


@pytest.mark.usefixtures("model")
def test_what_is_left_counts_down(settings: Settings, key: str) -> None:
    # One comes back after 20 s: no pause of the machine between two requests is so long.
    responses = _post_until_refused(settings, key, {"requests_per_minute": 3}, most=3)
    left = [int(response.headers["x-ratelimit-remaining-requests"]) for response in responses]
    assert left == [2, 1, 0]


@pytest.mark.usefixtures("model")
def test_a_prompt_over_a_minutes_tokens_can_never_come_in(settings: Settings, key: str, db: Database) -> None:
    with serving(settings.model_copy(update={"tokens_per_minute": 3})) as server:
        headers = {"Authorization": f"Bearer {key}"}
        job = httpx2.post(f"{server.url}/v1/jobs", json=PROMPT, headers=headers, timeout=60)
        chat = httpx2.post(f"{server.url}/v1/chat/completions", json=CHAT, headers=headers, timeout=60)
    assert job.status_code == chat.status_code == 400
    assert (error_of(job)["param"], error_of(chat)["param"]) == ("input", "messages")
    assert "shorten" in error_of(job)["message"]
    assert num_jobs(db) == 0


def test_keys_have_their_own_limits(settings: Settings, db: Database, tenant: str, key: str) -> None:
    first = api_keys.authenticate(db, key)
    second = api_keys.authenticate(db, api_keys.create_key(db, tenant, "second", ["jobs:write"], actor="tests"))
    client = connect(settings.redis_url)
    book = LimitCache(settings.model_copy(update={"requests_per_minute": 1}), db)
    admission = RateLimits(book, Limiter(client))
    admission.spend_request(first)
    with pytest.raises(RateLimited):
        admission.spend_request(first)
    assert admission.spend_request(second)["x-ratelimit-remaining-requests"] == "0"
    client.close()


@pytest.mark.usefixtures("model")
def test_many_at_once_do_not_get_past_the_bound(settings: Settings, key: str, db: Database) -> None:
    with serving(settings.model_copy(update={"max_queued_jobs_per_tenant": 20})) as server:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=server.url, headers=headers, timeout=60) as client, ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: client.post("/v1/jobs", json=PROMPT).status_code, range(100)))
    assert (answers.count(202), answers.count(429)) == (20, 80)
    assert num_jobs(db) == 20


@pytest.mark.usefixtures("model")
def test_a_job_with_more_tokens_than_may_be_queued_never_comes_in(settings: Settings, key: str, db: Database) -> None:
    with serving(settings.model_copy(update={"max_queued_tokens_per_tenant": 50})) as server:
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx2.post(
            f"{server.url}/v1/jobs", json=PROMPT | {"sampling": {"max_tokens": 60}}, headers=headers, timeout=60
        )
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "sampling.max_tokens"
    assert num_jobs(db) == 0


@pytest.mark.usefixtures("model")
def test_without_a_dispatcher_the_accepting_process_adds_up_what_it_reads(
    settings: Settings, key: str, db: Database, tenant: str
) -> None:
    def waiting() -> int:
        with db.begin() as connection:
            return int(connection.execute(text("SELECT count(*) FROM open_changes")).scalar_one())

    with db.begin() as connection:
        # As many jobs that came and went leave behind, and one that is there.
        changes = """INSERT INTO open_changes
            (tenant_id, api_key_id, queue, jobs, queued_tokens, input_tokens, output_tokens)
            SELECT :tenant, '', 'tiny@1', each, 9 * each, 5 * each, 4 * each
            FROM (SELECT (number % 2) * 2 - 1 AS each FROM generate_series(1, :many) AS number) AS moved"""
        connection.execute(text(changes), {"tenant": tenant, "many": quotas.FOLD_PAST + 1})
    before = quotas.usage_of(db, tenant)
    assert (before.jobs, before.queued_tokens) == (1, 9)
    with serving(settings) as server:
        wait_for(lambda: waiting() == 0, "they were added up")
        assert quotas.usage_of(db, tenant) == before
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx2.post(f"{server.url}/v1/jobs", json=PROMPT, headers=headers, timeout=60).status_code == 202
        # So few are the dispatcher's: it measures the queues by them.
        assert (waiting(), quotas.fold(db, past=quotas.FOLD_PAST), waiting()) == (1, 0, 1)
    assert quotas.usage_of(db, tenant).jobs == 2


@pytest.mark.usefixtures("model")
def test_a_replay_needs_no_place(settings: Settings, key: str, db: Database) -> None:
    with serving(settings.model_copy(update={"max_queued_jobs": 2})) as server:
        headers = {"Authorization": f"Bearer {key}"}

        def post(idempotency_key: str) -> int:
            keyed = headers | {"Idempotency-Key": idempotency_key}
            return httpx2.post(f"{server.url}/v1/jobs", json=PROMPT, headers=keyed, timeout=60).status_code

        assert [post(name) for name in ("a", "a", "a", "b", "b", "c", "a", "b")] == [202] * 5 + [429, 202, 202]
    assert num_jobs(db) == 2
