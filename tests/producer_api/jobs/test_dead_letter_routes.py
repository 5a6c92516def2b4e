"""Jobs that were given up: they are listed, and replayed once each."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.jobs.claims import claim
from headrace.store.jobs.dead_letters import note_replay
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from tests.producer_api.calling import bury, error_of, num_jobs, submit
from tests.producer_api.conftest import MakeClient
from tests.producer_api.serving import serving


def letters(api: httpx2.Client, **filters: Any) -> list[dict[str, Any]]:
    response = api.get("/v1/dead_letters", params=filters)
    assert response.status_code == 200, response.text
    return list(response.json()["data"])


def replay(api: httpx2.Client, job_id: str) -> dict[str, Any]:
    response = api.post(f"/v1/dead_letters/{job_id}/replay")
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/v1/jobs/{response.json()['job_id']}"
    return dict(response.json())


def test_what_was_given_up_is_listed_and_nothing_else(api: httpx2.Client, db: Database) -> None:
    submit(api)
    exhausted = bury(db, submit(api, max_attempts=2))
    poison = bury(db, submit(api, max_attempts=9))
    cancelled = submit(api)
    api.post(f"/v1/jobs/{cancelled}/cancel").raise_for_status()
    found = letters(api)
    assert [(letter["id"], letter["code"], letter["crashes"], letter["attempt"]) for letter in found] == [
        (poison, "poison", 3, 3),
        (exhausted, "max_attempts_exceeded", 2, 2),
    ]
    assert found[0]["message"]
    assert (found[0]["queue"], found[0]["replayed_as"], found[0]["replayed_at"]) == ("tiny@1", None, None)
    assert api.get(f"/v1/jobs/{poison}").json()["error"]["code"] == "poison"


def test_filters_and_pages(api: httpx2.Client, db: Database) -> None:
    ids = [bury(db, submit(api, max_attempts=1 + 8 * (n % 2))) for n in range(5)]
    assert [letter["id"] for letter in letters(api, code="poison", order="asc")] == ids[1::2]
    replay(api, ids[3])
    assert [letter["id"] for letter in letters(api, replayed="true")] == [ids[3]]
    assert [letter["id"] for letter in letters(api, replayed="false", order="asc")] == [*ids[:3], ids[4]]
    assert letters(api, queue="other@1") == []
    first = api.get("/v1/dead_letters", params={"limit": 3}).json()
    assert (first["has_more"], first["first_id"], first["last_id"]) == (True, ids[4], ids[2])
    rest = api.get("/v1/dead_letters", params={"limit": 3, "after": first["last_id"]}).json()
    assert ([letter["id"] for letter in rest["data"]], rest["has_more"]) == ([ids[1], ids[0]], False)
    assert error_of(api.get("/v1/dead_letters", params={"code": "sadness"}))["param"] == "code"


def test_a_replay_is_the_same_job_anew(api: httpx2.Client, db: Database, tenant: str) -> None:
    dead_id = bury(
        db,
        submit(api, max_attempts=2, deadline_ms=120_000, metadata={"order": "42"}, service_class="batch", priority=1),
    )
    made = replay(api, dead_id)
    assert (made["id"], made["replayed"]) == (dead_id, False)
    dead, new = jobs.get(db, tenant, dead_id), jobs.get(db, tenant, made["job_id"])
    for name in (
        "payload",
        "metadata",
        "queue",
        "service_class",
        "priority",
        "max_attempts",
        "input_tokens",
        "webhook",
    ):
        assert getattr(new, name) == getattr(dead, name), name
    assert (new.state, new.attempt, new.epoch, new.error) == (JobState.QUEUED, 0, 0, None)
    assert dead.state is JobState.FAILED
    assert new.deadline_at is not None
    assert (new.deadline_at - new.created_at).total_seconds() == pytest.approx(120)
    assert set(claim(db, "worker", "tiny@1", [new.id], 60)) == {new.id}, "it may run in company again"
    (letter,) = letters(api)
    assert letter["replayed_as"] == new.id
    assert letter["replayed_at"] >= letter["created_at"]
    assert [entry.resource for entry in list_entries(db, tenant) if entry.action == "dead_letter.replayed"] == [dead_id]


def test_a_dead_letter_is_replayed_once_whoever_asks_and_when(api: httpx2.Client, db: Database) -> None:
    dead_id = bury(db, submit(api, max_attempts=1))
    with ThreadPoolExecutor(8) as pool:
        made = {answer["job_id"] for answer in pool.map(lambda _: replay(api, dead_id), range(8))}
    assert len(made) == 1
    with db.begin() as connection:  # as if the process had died before it noted the replay
        connection.execute(text("UPDATE dead_letters SET replayed_as = NULL, replayed_at = NULL"))
    again = api.post(f"/v1/dead_letters/{dead_id}/replay")
    assert {again.json()["job_id"]} == made
    assert (again.json()["replayed"], again.headers["idempotent-replayed"]) == (True, "true")
    assert num_jobs(db) == 2


def test_of_two_replays_the_one_that_was_noted_first_stays(api: httpx2.Client, db: Database, tenant: str) -> None:
    """Two who replay at once may both note it; the owner's way to the new job must not change."""
    dead_id = bury(db, submit(api, max_attempts=1))
    for made in ("job_first", "job_second"):
        note_replay(db, tenant, dead_id, made, actor="key_1")
    assert letters(api)[0]["replayed_as"] == "job_first"
    noted = [entry.detail for entry in list_entries(db, tenant) if entry.action == "dead_letter.replayed"]
    assert noted == [{"replayed_as": "job_first"}]


def test_only_a_dead_letter_can_be_replayed(
    api: httpx2.Client, make_client: MakeClient, other_key: str, db: Database
) -> None:
    alive = submit(api)
    dead_id = bury(db, submit(api, max_attempts=1))
    for client, job_id in ((api, alive), (api, "job_0"), (make_client(other_key), dead_id)):
        response = client.post(f"/v1/dead_letters/{job_id}/replay")
        assert (response.status_code, error_of(response)["code"]) == (404, "not_found")
    assert letters(make_client(other_key)) == []
    assert make_client(other_key).post("/v1/dead_letters/replay", json={}).json()["data"] == []
    assert num_jobs(db) == 2


def test_many_are_replayed_oldest_first(api: httpx2.Client, db: Database) -> None:
    ids = [bury(db, submit(api, max_attempts=1 + 8 * (n % 2))) for n in range(5)]

    def replayed(**wanted: Any) -> tuple[list[str], bool]:
        body = api.post("/v1/dead_letters/replay", json=wanted).json()
        return [one["id"] for one in body["data"]], body["has_more"]

    assert replayed(code="poison", limit=1) == ([ids[1]], True)
    assert replayed(queue="other@1") == ([], False)
    assert replayed(limit=3) == ([ids[0], ids[2], ids[3]], True)
    assert replayed() == ([ids[4]], False)
    assert replayed() == ([], False)
    assert error_of(api.post("/v1/dead_letters/replay", json={"limit": 0}))["param"] == "limit"


def test_a_full_queue_takes_no_replay(api: httpx2.Client, settings: Settings, key: str, db: Database) -> None:
    ids = [bury(db, submit(api, max_attempts=1)) for _ in range(3)]
    with (
        serving(settings.model_copy(update={"max_queued_jobs": 2})) as server,
        httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as small,
    ):
        many = small.post("/v1/dead_letters/replay", json={}).json()
        refused = small.post(f"/v1/dead_letters/{ids[2]}/replay")
    assert ([one["id"] for one in many["data"]], many["has_more"]) == (ids[:2], True)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "queue_full")
    assert [letter["id"] for letter in letters(api, replayed="false")] == [ids[2]]
