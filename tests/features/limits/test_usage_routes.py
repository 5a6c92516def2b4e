"""The usage ledger through its public doors: what jobs used and cost, in buckets, as OpenAI's client reads it."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx2
import pytest
import redis
from openai import OpenAI
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.jobs.sweeps import purge
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys, usage
from headrace.store.tenants.usage import Price, set_price
from tests.cases import some_of
from tests.producer_api.calling import CHAT, PROMPT, error_of, submit
from tests.producer_api.conftest import MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer
from tests.roles import as_worker

DAY_S = 86_400
THEN = 20_000 * DAY_S
"""A midnight long ago, to which jobs are moved that must not be torn apart by today's."""


@pytest.fixture
def admin(server: ApiServer, key: str) -> Iterator[OpenAI]:
    """The official client's way to the organization routes."""
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused", admin_api_key=key, max_retries=0) as client:
        yield client


def run(api: httpx2.Client, worker: ScriptedWorker, num_tokens: int, **request: Any) -> dict[str, Any]:
    """Run a job to its success; return it."""
    response = api.post("/v1/jobs", json=PROMPT | request.pop("body", {}), **request)
    job_id = str(response.json()["id"])
    attempt = worker.claim(job_id)
    worker.say(attempt, *["x"] * num_tokens)
    worker.succeed(attempt)
    job: dict[str, Any] = api.get(f"/v1/jobs/{job_id}").json()
    return job


def move(db: Database, *job_ids: str, to: int = THEN) -> None:
    """Let the jobs have ended then; all of them, if none is named."""
    with db.begin() as connection:
        moved = "UPDATE usage_ledger SET at = to_timestamp(:at) WHERE job_id = ANY(:ids) OR cardinality(:ids) = 0"
        connection.execute(text(moved.replace(":ids", "CAST(:ids AS text[])")), {"at": to, "ids": list(job_ids)})


def results(page: Any) -> list[Any]:
    return [result for bucket in page.data for result in bucket.results]


def test_the_official_client_reads_what_every_job_used_and_cost(
    api: httpx2.Client,
    admin: OpenAI,
    db: Database,
    tenant: str,
    model: ModelVersion,
    make_client: MakeClient,
    worker: ScriptedWorker,
) -> None:
    set_price(db, "tiny", 1, Price(Decimal(2), Decimal(1), Decimal("0.5")), actor="tests")
    other_key = make_client(api_keys.create_key(db, tenant, "second", ["jobs:write", "jobs:read"], actor="tests"))
    worker.cached_tokens = 2
    jobs = [
        run(api, worker, 3),
        run(api, worker, 4, headers={"OpenAI-Project": "proj_a", "OpenAI-Organization": "org"}, body={"user": "u1"}),
        run(other_key, worker, 5, body={"service_class": "batch"}),
    ]
    assert len(admin.admin.organization.usage.completions(start_time=THEN).data) == 7
    assert results(admin.admin.organization.usage.completions(start_time=THEN)) == []
    move(db)
    (total,) = results(admin.admin.organization.usage.completions(start_time=THEN))
    assert total.object == "organization.usage.completions.result"
    assert total.num_model_requests == 3
    for name in ("input_tokens", "output_tokens"):
        assert getattr(total, name) == sum(job["usage"][name] for job in jobs)
    assert total.input_cached_tokens == 3 * 2
    assert (total.model, total.project_id, total.api_key_id, total.batch) == (None, None, None, None)

    def by(*names: Any, **only: Any) -> dict[tuple[Any, ...], int]:
        found = admin.admin.organization.usage.completions(start_time=THEN, group_by=list(names), **only)
        return {tuple(getattr(each, name) for name in names): each.output_tokens for each in results(found)}

    assert by("model") == {("tiny@1",): 12}
    assert by("project_id", "user_id") == {("proj_a", "u1"): 4, (None, None): 8}
    assert sorted(by("api_key_id").values()) == [5, 7]
    assert by("batch") == {(True,): 5, (False,): 7}
    assert by("service_tier") == {("flex",): 5, ("default",): 7}
    assert by("model", models=["tiny"]) == by("model", models=["tiny@1", "other"]) == {("tiny@1",): 12}
    assert by("model", models=["tiny@2"]) == by("model", user_ids=["u2"]) == {}
    assert by("project_id", project_ids=["proj_a"], user_ids=["u1"]) == {("proj_a",): 4}
    (key_id,) = next(key for key, tokens in by("api_key_id").items() if tokens == 5)
    assert by("batch", api_key_ids=[key_id]) == {(True,): 5}
    assert results(admin.admin.organization.usage.embeddings(start_time=THEN)) == []

    def price_of(used: dict[str, Any]) -> float:
        uncached = used["input_tokens"] - used["cached_tokens"]
        return float(uncached * 2 + used["cached_tokens"] + used["output_tokens"] * 0.5) / 1e6

    cost = sum(price_of(job["usage"]) for job in jobs)
    assert sum(job["usage"]["cost"] for job in jobs) == pytest.approx(cost)
    (costs,) = results(admin.admin.organization.usage.costs(start_time=THEN, group_by=["line_item"]))
    assert (costs.line_item, costs.amount.currency) == ("tiny@1", "usd")
    assert costs.amount.value == pytest.approx(cost)


@pytest.mark.full
def test_usage_says_the_same_once_it_was_added_up_by_the_day(
    api: httpx2.Client, settings: Settings, db: Database, tenant: str, worker: ScriptedWorker
) -> None:
    set_price(db, "tiny", 1, Price(Decimal(2), Decimal(1), Decimal("0.1")), actor="tests")
    bodies = ({}, {"user": "u1"}, {"user": "u1"}, {"user": "u1", "service_class": "batch"})
    ids = [run(api, worker, 2 + number, body=body)["id"] for number, body in enumerate(bodies)]
    move(db, *ids, to=THEN + 7 * 3600)
    move(db, ids[-1], to=THEN + DAY_S)
    last = run(api, worker, 9)["id"]

    def told() -> list[Any]:
        asked = {"start_time": THEN, "end_time": THEN + 2 * DAY_S}
        return [
            api.get(f"/v1/organization/{route}", params=asked | {"group_by": by}).raise_for_status().json()
            for route, names in (
                ("usage/completions", ("model", "user_id", "api_key_id", "batch")),
                ("costs", ("line_item", "user_id")),
            )
            for by in ((), *((name,) for name in names), names)
        ]

    before = told()
    assert any(bucket["results"] for bucket in before[0]["data"])
    dispatchers = Database(as_worker(settings).database_url, pool_size=1, application_name="tests")
    steps = [usage.roll_up(dispatchers, tenant, 0, limit=1) for _ in range(5)]
    dispatchers.close()
    assert steps == [1, 1, 1, 1, 0], "today's and yesterday's stay as they are"
    assert told() == before
    with db.begin() as connection:
        left = connection.execute(text("SELECT job_id FROM usage_ledger")).scalars().all()
        days = connection.execute(text("SELECT num_jobs FROM usage_days ORDER BY num_jobs")).scalars().all()
    assert (left, days) == ([last], [1, 1, 2])


def test_whatever_was_generated_is_counted_once_and_outlives_its_job(
    api: httpx2.Client, admin: OpenAI, db: Database, worker: ScriptedWorker
) -> None:
    first = run(api, worker, 2)
    assert first["usage"]["cost"] is None, "there is no price"
    set_price(db, "tiny", 1, Price(Decimal(1), Decimal(1), Decimal(10)), actor="tests")
    hung_up = worker.claim(submit(api))
    worker.say(hung_up, "a", "b", "c")
    api.post(f"/v1/jobs/{hung_up.claim.job_id}/cancel").raise_for_status()
    worker.obey_cancel(hung_up)
    never_ran = submit(api)
    api.post(f"/v1/jobs/{never_ran}/cancel").raise_for_status()
    handed_back = worker.claim(submit(api))
    worker.say(handed_back, "a")
    worker.hand_back(handed_back)
    again = worker.go_on(handed_back, 1)
    worker.say(again, "b", "c", "d")
    worker.expire(again)
    move(db)
    (total,) = results(admin.admin.organization.usage.completions(start_time=THEN))
    assert (total.num_model_requests, total.output_tokens) == (3, 2 + 3 + 4)
    (costs,) = results(admin.admin.organization.usage.costs(start_time=THEN))
    priced_input = 2 * first["usage"]["input_tokens"]
    assert costs.amount.value == pytest.approx((priced_input + 7 * 10) / 1e6), (
        "what ended before the price cost nothing"
    )
    ended = api.get("/v1/jobs").json()["data"]
    for job in ended:
        api.delete(f"/v1/jobs/{job['id']}").raise_for_status()
    assert purge(db, record_ttl_s=0, idempotency_ttl_s=0, limit=100) == len(ended) > 0
    assert api.get(f"/v1/jobs/{first['id']}").status_code == 410
    (after,) = results(admin.admin.organization.usage.completions(start_time=THEN))
    assert after == total


def test_vectors_are_counted_apart_from_text(
    api: httpx2.Client, admin: OpenAI, db: Database, encoder: ModelVersion, redis_client: redis.Redis
) -> None:
    set_price(db, "org/vectors", 1, Price(Decimal(1000), Decimal(1000), Decimal(0)), actor="tests")
    body = {"task": "embed", "model": "org/vectors", "input": {"texts": ["a mill", "bread"]}}
    job = run(api, ScriptedWorker(db, redis_client, "org/vectors@1"), 0, body=body)
    move(db)
    (found,) = results(admin.admin.organization.usage.embeddings(start_time=THEN, group_by=["model"]))
    assert (found.object, found.model) == ("organization.usage.embeddings.result", "org/vectors@1")
    assert (found.num_model_requests, found.input_tokens) == (1, job["usage"]["input_tokens"])
    assert results(admin.admin.organization.usage.completions(start_time=THEN)) == []
    (costs,) = results(admin.admin.organization.usage.costs(start_time=THEN))
    assert costs.amount.value == pytest.approx(found.input_tokens / 1000)


def test_pages_hold_every_bucket_once(api: httpx2.Client, db: Database, worker: ScriptedWorker) -> None:
    ids = [run(api, worker, tokens)["id"] for tokens in (1, 2, 4)]
    today = THEN + 3 * DAY_S
    for days, job_id in enumerate(ids):
        move(db, job_id, to=today - days * DAY_S)
    asked: dict[str, Any] = {"start_time": today - 3 * DAY_S + 7, "end_time": today + 1, "limit": 2}
    buckets: list[dict[str, Any]] = []
    page: dict[str, Any] = {"has_more": True}
    while page["has_more"]:
        page = api.get("/v1/organization/usage/completions", params=asked).raise_for_status().json()
        buckets += page["data"]
        asked["page"] = page["next_page"]
    assert [bucket["start_time"] for bucket in buckets] == [today - days * DAY_S for days in (3, 2, 1, 0)]
    assert [bucket["end_time"] - bucket["start_time"] for bucket in buckets] == [DAY_S] * 4
    assert [[r["output_tokens"] for r in bucket["results"]] for bucket in buckets] == [[], [4], [2], [1]]
    minutes = {"start_time": today, "end_time": today + 120, "bucket_width": "1m"}
    found = api.get("/v1/organization/usage/completions", params=minutes).json()["data"]
    assert [len(bucket["results"]) for bucket in found] == [1, 0]


@some_of(1, ("route", "days"), [("usage/completions", 31), ("usage/embeddings", 31), ("costs", 180)])
def test_a_page_has_so_many_buckets_of_a_width(api: httpx2.Client, route: str, days: int) -> None:
    for width, default, most in (("1m", 60, 1440), ("1h", 24, 168), ("1d", 7, days)):
        asked: dict[str, Any] = {"start_time": THEN, "bucket_width": width}
        pages = [api.get(f"/v1/organization/{route}", params=asked | more) for more in ({}, {"limit": most})]
        assert [len(page.json()["data"]) for page in pages] == [default, most], width
        refused = api.get(f"/v1/organization/{route}", params=asked | {"limit": most + 1})
        assert f" {most} " in error_of(refused)["message"]


@some_of(
    1,
    ("route", "known"),
    [
        ("usage/completions", "project_id, user_id, api_key_id, model, batch, service_tier"),
        ("usage/embeddings", "project_id, user_id, api_key_id, model"),
        ("costs", "project_id, user_id, api_key_id, line_item"),
    ],
)
def test_usage_is_grouped_by_the_fields_of_the_route(api: httpx2.Client, route: str, known: str) -> None:
    asked: dict[str, Any] = {"start_time": THEN, "group_by": known.split(", ")}
    assert api.get(f"/v1/organization/{route}", params=asked).status_code == 200
    refused = api.get(f"/v1/organization/{route}", params=asked | {"group_by": "mood"})
    assert f"{known}, not 'mood'" in error_of(refused)["message"]


def test_nobody_sees_anothers_usage(
    api: httpx2.Client, db: Database, make_client: MakeClient, other_key: str, worker: ScriptedWorker
) -> None:
    run(api, worker, 3)
    move(db)
    for route in ("usage/completions", "costs"):
        found = make_client(other_key).get(f"/v1/organization/{route}", params={"start_time": THEN, "limit": 1})
        assert [bucket["results"] for bucket in found.json()["data"]] == [[]]


SENSELESS: list[tuple[str, dict[str, Any], str]] = [
    ("usage/completions", {}, "start_time"),
    ("usage/completions", {"start_time": -1}, "start_time"),
    ("usage/completions", {"start_time": 0, "bucket_width": "1w"}, "bucket_width"),
    ("usage/completions", {"start_time": 0, "limit": 32}, "limit"),
    ("costs", {"start_time": 0, "limit": 181}, "limit"),
    ("usage/completions", {"start_time": 0, "limit": 0}, "limit"),
    ("usage/completions", {"start_time": 100, "end_time": 0}, "end_time"),
    ("usage/completions", {"start_time": 0, "page": "page_1"}, "page"),
    ("usage/completions", {"start_time": DAY_S, "page": "page_0"}, "page"),
    ("usage/completions", {"start_time": 0, "page": "2"}, "page"),
    ("usage/completions", {"start_time": 0, "group_by[]": "line_item"}, "group_by"),
    ("usage/embeddings", {"start_time": 0, "group_by": "batch"}, "group_by"),
    ("costs", {"start_time": 0, "group_by": "model"}, "group_by"),
]


def test_a_question_that_makes_no_sense_is_refused(api: httpx2.Client, subtests: pytest.Subtests) -> None:
    for route, asked, param in SENSELESS:
        with subtests.test(f"{route} {asked}"):
            response = api.get(f"/v1/organization/{route}", params=asked)
            assert response.status_code == 400
            assert error_of(response)["param"] == param


def test_a_chat_is_counted_for_its_user(
    api: httpx2.Client, admin: OpenAI, db: Database, worker: ScriptedWorker
) -> None:
    with worker.serve(lambda _: ["water"]):
        api.post("/v1/chat/completions", json=CHAT | {"user": "u1"}).raise_for_status()
        api.post("/v1/chat/completions", json=CHAT | {"user": "u1", "safety_identifier": "u2"}).raise_for_status()
    move(db)
    found = admin.admin.organization.usage.completions(start_time=THEN, group_by=["user_id"])
    assert {result.user_id: result.num_model_requests for result in results(found)} == {"u1": 1, "u2": 1}
    refused = api.post("/v1/chat/completions", json=CHAT | {"user": "u" * 513})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "user")
