"""Limits of tenants and keys: set, read and enforced; rights to raise them, refusals, and the remaining amount."""

from decimal import Decimal

import httpx2
import pytest
import redis
from openai import OpenAI, RateLimitError

from headrace.store import audit_log as audit
from headrace.store.db import presence
from headrace.store.db.database import Database
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from headrace.store.tenants.tenant_limits import Limits, SetBy, set_limits
from headrace.store.tenants.usage import Price, set_price
from tests.processes import wait_for
from tests.producer_api.calling import CHAT, PROMPT, error_of, num_jobs, submit
from tests.producer_api.conftest import MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import serving

# The prompt of PROMPT has five tokens; a token costs one.
BODY = PROMPT | {"sampling": {"max_tokens": 4}}
COST = 9


def operator(db: Database, tenant: str, key_id: str | None, limits: Limits) -> None:
    set_limits(db, tenant, key_id, limits, set_by=SetBy.OPERATOR, actor="tests")


@pytest.fixture
def admin(make_client: MakeClient, db: Database, tenant: str) -> httpx2.Client:
    return make_client(api_keys.create_key(db, tenant, "admin", ["admin"], actor="tests"))


def key_id(key: str) -> str:
    return f"key_{key.split('_')[1]}"


def test_a_tenant_sets_lower_limits_for_itself_and_its_keys_and_never_higher_ones(
    api: httpx2.Client,
    admin: httpx2.Client,
    make_client: MakeClient,
    db: Database,
    redis_client: redis.Redis,
    tenant: str,
    key: str,
    other_key: str,
) -> None:
    operator(db, tenant, None, Limits(requests_per_minute=100, monthly_cost=Decimal("12.5")))
    whole, own = "/v1/organization/limits", f"/v1/organization/api_keys/{key_id(key)}/limits"
    seen = admin.get(whole).json()
    assert (seen["id"], seen["operator"]["requests_per_minute"], seen["limits"]["monthly_cost"]) == (tenant, 100, 12.5)
    assert admin.put(whole, json={"requests_per_minute": 40}).json()["limits"]["requests_per_minute"] == 40
    raised = admin.put(whole, json={"requests_per_minute": 101})
    assert raised.status_code == 400
    assert error_of(raised)["param"] == "requests_per_minute"
    assert "ask the operator" in error_of(raised)["message"]
    assert admin.put(whole, json={"live_batches": 0}).json()["limits"]["live_batches"] == 0, "0 is a limit"
    assert admin.put(whole, json={}).json()["limits"]["requests_per_minute"] == 100, "its own are replaced"
    assert api.put(own, json={}).status_code == api.put(whole, json={}).status_code == 403
    # Which were counted: of its two a minute the key has both again.
    redis_client.flushdb()
    assert admin.put(own, json={"requests_per_minute": 2, "concurrent_jobs": 9}).status_code == 200
    assert admin.put(own, json={"requests_per_minute": 6001}).status_code == 400, (
        "a key's default is the operator's too"
    )
    for wrong in ({"requests_per_minute": 0}, {"queued_tokens": -1}, {"monthly_cost": "1"}, {"jobs": 1}):
        assert admin.put(own, json=wrong).status_code == 400
    stranger = make_client(other_key)
    assert stranger.get(own).status_code == stranger.put(own, json={"concurrent_jobs": 0}).status_code == 404
    assert [api.post("/v1/jobs", json=BODY).status_code for _ in range(3)] == [202, 202, 429]
    used = api.get(own).json()
    assert used["limits"]["requests_per_minute"] == used["used"]["requests"] == 2
    assert (used["used"]["concurrent_jobs"], used["used"]["queued_tokens"]) == (2, 2 * COST)
    deeds = [(entry.actor, entry.resource, entry.detail["after"]) for entry in audit.list_entries(db, tenant)[:2]]
    assert deeds[0] == (deeds[0][0], key_id(key), {"requests_per_minute": 2, "concurrent_jobs": 9})
    assert deeds[1][1:] == (tenant, {})


def test_the_stricter_of_key_and_tenant_holds_and_every_response_says_what_is_left(
    api: httpx2.Client, make_client: MakeClient, db: Database, tenant: str, key: str
) -> None:
    operator(db, tenant, None, Limits(requests_per_minute=4, input_tokens_per_minute=30))
    operator(db, tenant, key_id(key), Limits(requests_per_minute=3))
    second = make_client(api_keys.create_key(db, tenant, "second", ["jobs:write"], actor="tests"))
    answers = [
        api.post("/v1/jobs", json=BODY),
        api.post("/v1/jobs", json=BODY | {"model": "nobody"}),
        api.post("/v1/chat/completions", json=CHAT | {"max_tokens": 100_000}),
        api.post("/v1/jobs", json=BODY),
        second.post("/v1/jobs", json=BODY),
        second.post("/v1/moderations", json={"input": "hello"}),
    ]
    assert [answer.status_code for answer in answers] == [202, 404, 400, 429, 202, 429]
    limit, left = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests")
    told = [(answer.headers[limit], answer.headers[left]) for answer in answers]
    assert told == [("3", "2"), ("3", "1"), ("3", "0"), ("3", "0"), ("4", "0"), ("4", "0")]
    assert answers[0].headers["x-ratelimit-limit-tokens"] == "30", "the tenant's is the tighter"
    assert "with this key" in error_of(answers[3])["message"]
    assert "by your organization" in error_of(answers[5])["message"]
    assert limit not in api.get("/v1/jobs/job_0").headers


def test_a_month_cannot_be_overspent_and_the_official_client_does_not_try_again(
    api: httpx2.Client, openai: OpenAI, db: Database, tenant: str, key: str, worker: ScriptedWorker
) -> None:
    set_price(db, "tiny", 1, Price(Decimal(10**6), Decimal(10**6), Decimal(10**6)), actor="tests")
    operator(db, tenant, None, Limits(monthly_cost=Decimal(25)))
    first, _ = submit(api, **BODY), submit(api, **BODY)
    refused = api.post("/v1/jobs", json=BODY)
    assert refused.status_code == 429
    error = error_of(refused)
    assert (error["type"], error["code"]) == ("insufficient_quota", "quota_exceeded")
    assert "spent 0 of 25" in error["message"]
    assert "may cost 18 more" in error["message"]
    assert (refused.headers["x-should-retry"], "retry-after" in refused.headers) == ("false", False)
    assert "x-ratelimit-remaining-requests" in refused.headers
    attempt = worker.claim(first)
    worker.say(attempt, "a")
    worker.succeed(attempt)
    used = api.get("/v1/organization/limits").json()["used"]
    assert (used["cost"], used["reserved_cost"]) == (COST - 3, COST), "what was not used is free again"
    submit(api, **PROMPT | {"sampling": {"max_tokens": 2}})
    before = num_jobs(db)
    with pytest.raises(RateLimitError) as caught:
        openai.with_options(max_retries=2).chat.completions.create(**CHAT, max_tokens=4)  # type: ignore[call-overload]
    assert caught.value.code == "quota_exceeded"
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
    assert num_jobs(db) == before


def test_a_limit_that_is_changed_holds_for_a_running_process_soon(
    settings: Settings, db: Database, tenant: str, key: str, model: object
) -> None:
    with serving(settings) as one, serving(settings) as other:
        headers = {"Authorization": f"Bearer {key}"}
        clients = [httpx2.Client(base_url=server.url, headers=headers, timeout=60) for server in (one, other)]
        assert [client.post("/v1/jobs", json=BODY).status_code for client in clients] == [202, 202]
        operator(db, tenant, key_id(key), Limits(concurrent_jobs=4))
        for server in (one, other):
            server.runtime.limits.forget()  # as two seconds would
        answers = [client.post("/v1/jobs", json=BODY) for client in clients * 3]
        assert [answer.status_code for answer in answers] == [202, 202, 429, 429, 429, 429]
        assert error_of(answers[-1])["code"] == "rate_limit_exceeded"
        assert "4 jobs" in error_of(answers[-1])["message"]
        wait_for(lambda: presence.beat(db, "tests") == 3, "both servers are counted, and this one")
        for client in clients:
            client.close()
