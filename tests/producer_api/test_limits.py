"""What is refused before acceptance: too often, too much, too many."""

from typing import Any

import httpx2
import pytest

from producer_api.admission import Admission
from store import keys
from store.db import Database
from store.errors import RateLimited
from store.limits import Limiter
from store.redis import connect
from store.settings import Settings
from tests.producer_api.calling import CHAT, PROMPT, error_of, num_jobs
from tests.producer_api.serving import serving


def _post_until_refused(settings: Settings, key: str, limits: dict[str, Any], most: int = 10) -> list[httpx2.Response]:
    with serving(settings.model_copy(update=limits)) as server:
        headers = {"Authorization": f"Bearer {key}"}
        return [httpx2.post(f"{server.url}/v1/jobs", json=PROMPT, headers=headers) for _ in range(most)]


@pytest.mark.parametrize(
    ("limits", "num_accepted", "code"),
    [
        ({"requests_per_minute": 3}, 3, "rate_limit_exceeded"),
        ({"tokens_per_minute": 12}, 2, "rate_limit_exceeded"),
        ({"max_queued_jobs_per_tenant": 4}, 4, "queue_full"),
        ({"max_queued_jobs": 5}, 5, "queue_full"),
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
    responses = _post_until_refused(settings, key, {"requests_per_minute": 60}, most=3)
    left = [int(response.headers["x-ratelimit-remaining-requests"]) for response in responses]
    assert left == [59, 58, 57]


@pytest.mark.usefixtures("model")
def test_a_prompt_over_a_minutes_tokens_can_never_come_in(settings: Settings, key: str, db: Database) -> None:
    with serving(settings.model_copy(update={"tokens_per_minute": 3})) as server:
        headers = {"Authorization": f"Bearer {key}"}
        job = httpx2.post(f"{server.url}/v1/jobs", json=PROMPT, headers=headers)
        chat = httpx2.post(f"{server.url}/v1/chat/completions", json=CHAT, headers=headers)
    assert job.status_code == chat.status_code == 400
    assert (error_of(job)["param"], error_of(chat)["param"]) == ("input", "messages")
    assert "shorten" in error_of(job)["message"]
    assert num_jobs(db) == 0


def test_keys_have_their_own_limits(settings: Settings, db: Database, tenant: str, key: str) -> None:
    first = keys.authenticate(db, key)
    second = keys.authenticate(db, keys.create_key(db, tenant, "second", ["jobs:write"], actor="tests"))
    client = connect(settings.redis_url)
    admission = Admission(settings.model_copy(update={"requests_per_minute": 1}), db, Limiter(client))
    admission.spend_request(first)
    with pytest.raises(RateLimited):
        admission.spend_request(first)
    assert admission.spend_request(second)["x-ratelimit-remaining-requests"] == "0"
    client.close()


def test_queued_jobs_are_counted_again_after_a_moment(settings: Settings, db: Database, tenant: str) -> None:
    now = 0.0
    client = connect(settings.redis_url)
    bounds = settings.model_copy(update={"max_queued_jobs_per_tenant": 1})
    admission = Admission(bounds, db, Limiter(client), clock=lambda: now)
    admission.reserve_place(tenant)
    with pytest.raises(RateLimited, match="1 jobs queued"):
        admission.reserve_place(tenant)
    now = 1.0
    admission.reserve_place(tenant)
    client.close()
