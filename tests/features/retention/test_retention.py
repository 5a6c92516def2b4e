"""Expired content is deleted from every column, and only that; content still needed stays."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from headrace.features.files import files
from headrace.features.files.blob_storage import open_blobs
from headrace.features.files.files import Purpose
from headrace.features.responses import stored_responses
from headrace.features.responses.new_response import NewResponse
from headrace.features.retention import retention
from headrace.features.retention.purge import Scope, count, purge_step
from headrace.features.retention.retention import (
    DAY_S,
    Retention,
    read_all,
    read_retention,
    set_retention,
    sweep,
    sweep_marked,
)
from headrace.store.db.database import Database
from headrace.store.errors import Gone, InvalidRequest
from headrace.store.jobs import erasure
from headrace.store.jobs.claims import Finish, Release, claim, finish, release
from headrace.store.jobs.jobs import accept, get, list_jobs, timeline
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.streams.checkpoints import Checkpoint
from headrace.store.tenants.tenant_limits import SetBy
from tests.store.making import CHAIN, QUEUE, AcceptOne, MakeJob, Query, new_flow

ASKED, ANSWERED = "xyzzy-asked", "xyzzy-answered"
CONTENTS = {
    "payload": {"input": {"prompt": ASKED}, "sampling": {}},
    "metadata": {"order": ASKED},
    "webhook": {"url": f"https://example.com/{ASKED}", "events": ["job.succeeded"]},
    "fingerprint": ASKED,
}
OUTPUT = {"text": ANSWERED, "finish_reason": "stop"}
ERROR = {"code": "tool_timeout", "message": ANSWERED, "retryable": False, "attempt": 1}
TABLES = (
    "jobs",
    "attempts",
    "job_events",
    "job_streams",
    "job_checkpoints",
    "responses",
    "dead_letters",
    "webhook_deliveries",
)
EVERYTHING = Retention(0, 0, 0, 0)


@pytest.fixture
def said(query: Query) -> Callable[[], dict[str, list[str]]]:
    """All columns that can contain content of jobs."""

    def look() -> dict[str, list[str]]:
        dump = {table: str(query(f"SELECT row_to_json({table})::text AS row FROM {table}")) for table in TABLES}
        return {word: [table for table, row in dump.items() if word in row] for word in (ASKED, ANSWERED)}

    return look


def end(db: Database, tenant: str, job_id: str, state: JobState = JobState.SUCCEEDED) -> None:
    claimed = claim(db, "worker", QUEUE, [job_id], 60)[job_id]
    error = ERROR if state is JobState.FAILED else None
    done = Finish(job_id, claimed.epoch, state, OUTPUT, error, None, [ANSWERED], tenant_id=tenant)
    assert finish(db, [done]) == {job_id}


def told(query: Query) -> None:
    """Let every webhook be delivered."""
    query("UPDATE webhook_deliveries SET state = 'delivered', delivered_at = now()")


def age(query: Query, seconds: float) -> None:
    query("UPDATE jobs SET completed_at = completed_at - :s * interval '1 s'", s=seconds)
    query("UPDATE webhook_deliveries SET created_at = created_at - :s * interval '1 s'", s=seconds)


class TestForgetting:
    def test_inputs_outputs_and_deliveries_go_each_in_their_time_and_the_row_stays(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query, said: Callable[[], dict[str, list[str]]]
    ) -> None:
        done, failed = accept_one(**CONTENTS, user_id="ann"), accept_one(**CONTENTS)
        end(db, tenant, done)
        end(db, tenant, failed, JobState.FAILED)
        told(query)
        assert said() == {
            ASKED: ["jobs", "webhook_deliveries"],
            ANSWERED: ["jobs", "attempts", "job_streams"],
        }
        counted = sweep(db, tenant, EVERYTHING, 10).counts
        assert counted == Counter(num_deliveries=1), "who waits for the end has a minute to read it"
        age(query, 20)
        assert sweep(db, tenant, EVERYTHING, 10).counts["num_outputs"] == 0
        age(query, 150)
        assert sweep(db, tenant, Retention(inputs_s=300, outputs_s=300), 10).counts["num_inputs"] == 0
        assert sweep(db, tenant, Retention(inputs_s=100, outputs_s=300), 10).counts["num_inputs"] == 2
        assert said()[ASKED] == []
        kept = get(db, tenant, done)
        assert (kept.output, kept.payload, kept.webhook) == (OUTPUT, {}, None)
        swept = sweep(db, tenant, Retention(inputs_s=100, outputs_s=100), 10)
        assert (swept.counts["num_inputs"], swept.counts["num_outputs"], set(swept.job_ids)) == (0, 2, {done, failed})
        assert said() == {ASKED: [], ANSWERED: []}
        with pytest.raises(Gone, match=done):
            get(db, tenant, done)
        first, second = list_jobs(db, tenant)
        assert (first.state, first.error and first.error["code"], second.state) == (
            "failed",
            "tool_timeout",
            "succeeded",
        )
        assert second.output_purged_at is not None
        assert [event.kind for event in timeline(db, tenant, done)] == ["queued", "started", "succeeded"]
        assert query("SELECT user_id FROM jobs WHERE user_id IS NOT NULL") == [{"user_id": "ann"}]

    def test_what_has_not_ended_or_is_still_to_be_sent_stays(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        queued, running, untold = (accept_one(**CONTENTS) for _ in range(3))
        claim(db, "worker", QUEUE, [running], 60)
        release(db, [Release(running, 1, checkpoint=Checkpoint((ANSWERED,), ((1,),)), tenant_id=tenant)])
        end(db, tenant, untold)
        age(query, 200)
        swept = sweep(db, tenant, EVERYTHING, 10)
        assert (swept.counts["num_inputs"], swept.counts["num_outputs"], swept.counts["num_deliveries"]) == (1, 0, 0)
        assert get(db, tenant, untold).output == OUTPUT
        assert claim(db, "worker", QUEUE, [queued, running], 60)[running].checkpoint is not None
        told(query)
        assert sweep(db, tenant, EVERYTHING, 10).counts["num_outputs"] == 1

    def test_another_tenants_contents_stay_and_steps_are_bounded(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        foreign = accept_one(tenant_id=other_tenant)
        for job_id in (foreign, *(accept_one() for _ in range(3))):
            end(db, tenant if job_id != foreign else other_tenant, job_id)
        age(query, 200)
        steps = [sweep(db, tenant, EVERYTHING, 2) for _ in range(3)]
        assert [(one.counts["num_outputs"], one.more) for one in steps] == [(2, True), (1, False), (0, False)]
        assert get(db, other_tenant, foreign).output == OUTPUT

    def test_the_oldest_deliveries_and_files_go_first_in_steps(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query, settings: Settings
    ) -> None:
        for owner, num in ((tenant, 3), (other_tenant, 1)):
            for number in range(num):
                webhook = {"url": f"https://example.com/{number}"}
                end(db, owner, accept_one(tenant_id=owner, webhook=webhook))
                draft = open_blobs(settings).create()
                draft.write(b"content")
                files.create(db, owner, draft, filename=f"{number}", purpose=Purpose.BATCH, most_bytes=100)
        told(query)
        query("UPDATE webhook_deliveries SET state = 'failed', delivered_at = NULL WHERE url LIKE '%/1'")
        for table, name in (("webhook_deliveries", "right(url, 1)"), ("files", "filename")):
            hours = f"make_interval(hours => CAST({name} AS int))"
            query(f"UPDATE {table} SET created_at = now() - interval '200 s' - {hours}")
        swept = []
        for left in (["0"], []):
            one = sweep(db, tenant, Retention(deliveries_s=100, files_s=100), 2)
            swept.append((one.counts["num_deliveries"], one.counts["num_files"]))
            names = query("SELECT filename FROM files WHERE tenant_id = :id", id=tenant)
            urls = query("SELECT right(url, 1) AS name FROM webhook_deliveries WHERE tenant_id = :id", id=tenant)
            assert [row["filename"] for row in names] == [row["name"] for row in urls] == left
        assert swept == [(2, 2), (1, 1)]
        assert (
            query("SELECT count(*) AS n FROM files")
            == query("SELECT count(*) AS n FROM webhook_deliveries")
            == [{"n": 1}]
        )

    def test_of_another_job_nothing_goes(self, db: Database, tenant: str, accept_one: AcceptOne, query: Query) -> None:
        contents = CONTENTS | {"webhook": {"url": "https://example.com/hook", "events": ["job.failed"]}}
        response = NewResponse(None, True, False, [{"text": ASKED}], {"instructions": ASKED})
        gone, kept, waiting = (accept_one(**contents, response=response) for _ in range(3))
        for job_id in (gone, kept):
            claim(db, "worker", QUEUE, [job_id], 60)
            error = ERROR | {"code": "max_attempts_exceeded"}
            finish(db, [Finish(job_id, 1, JobState.FAILED, OUTPUT, error, None, [ANSWERED], tenant_id=tenant)])
        claim(db, "worker", QUEUE, [waiting], 60)
        release(db, [Release(waiting, 1, checkpoint=Checkpoint((ANSWERED,), ((1,),)), tenant_id=tenant)])
        told(query)

        def others() -> dict[str, list[dict[str, Any]]]:
            rows = {table: query(f"SELECT * FROM {table} ORDER BY 1, 2") for table in TABLES}
            return {table: [row for row in rows[table] if gone not in row.values()] for table in rows}

        before = others()
        assert all(before.values())
        assert erasure.purge_job(db, tenant, gone, actor="tests")
        assert others() == before

    def test_a_response_that_is_not_to_be_stored_goes_as_soon_as_it_may(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query, said: Callable[[], dict[str, list[str]]]
    ) -> None:
        def response(*, is_stored: bool) -> NewResponse:
            return NewResponse(None, is_stored, False, [{"text": ASKED}], {"instructions": ASKED})

        unstored = accept_one(**CONTENTS, response=response(is_stored=False))
        stored = accept_one(payload=CONTENTS["payload"], response=response(is_stored=True))
        for job_id in (unstored, stored):
            end(db, tenant, job_id)
        assert sweep_marked(db, 10).counts["num_outputs"] == 0
        age(query, 61)
        assert sweep_marked(db, 10).counts["num_outputs"] == 0, "a webhook is to carry it"
        told(query)
        assert sweep_marked(db, 10).job_ids == (unstored,)
        assert query("SELECT id FROM jobs WHERE output IS NOT NULL") == [{"id": stored}]
        stored_responses.delete(db, tenant, stored, actor="tests")
        assert said() == {ASKED: [], ANSWERED: []}

    def test_a_response_deleted_while_it_runs_is_forgotten_when_it_has_ended(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query, said: Callable[[], dict[str, list[str]]]
    ) -> None:
        job_id = accept_one(payload=CONTENTS["payload"], response=NewResponse(None, True, True, [{"text": ASKED}], {}))
        claimed = claim(db, "worker", QUEUE, [job_id], 60)[job_id]
        stored_responses.delete(db, tenant, job_id, actor="tests")
        assert said()[ASKED] == ["jobs"]
        finish(db, [Finish(job_id, claimed.epoch, JobState.SUCCEEDED, OUTPUT, None, None, [ANSWERED])])
        age(query, 61)
        sweep_marked(db, 10)
        assert said() == {ASKED: [], ANSWERED: []}


class TestWhoseWord:
    def test_the_shorter_of_operator_and_tenant_holds(self, db: Database, tenant: str, settings: Settings) -> None:
        default = retention.defaults(settings)
        assert read_all(db, default)[tenant] == Retention(7 * DAY_S, 7 * DAY_S, 30 * DAY_S, None)
        operators = Retention(inputs_s=100, files_s=50)
        set_retention(db, tenant, operators, set_by=SetBy.OPERATOR, actor="tests")
        set_retention(db, tenant, Retention(inputs_s=200, outputs_s=10), set_by=SetBy.TENANT, actor="tests")
        standing = read_retention(db, default, tenant)
        assert standing.effective == read_all(db, default)[tenant] == Retention(100, 10, 30 * DAY_S, 50)
        with pytest.raises(InvalidRequest, match="operator") as raised:
            retention.check_shorter(Retention(files_s=51), standing.ceiling)
        assert raised.value.param == "files_days"
        retention.check_shorter(Retention(files_s=50, outputs_s=0), standing.ceiling)
        with pytest.raises(InvalidRequest, match="0 to 36500"):
            Retention(outputs_s=-1)


def purge_all(db: Database, scope: Scope, kind: str = "jobs") -> int:
    done, after = 0, ""
    while True:
        found = purge_step(db, kind, scope, after=after, limit=2)
        done += found.num
        if found.after is None:
            return done
        after = found.after


class TestPurges:
    def test_of_a_user_or_of_a_time_only_those_go(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, make_job: MakeJob, query: Query
    ) -> None:
        def make(**changes: Any) -> str:
            job_id = accept_one(**changes)
            end(db, changes.get("tenant_id", tenant), job_id)
            return job_id

        anns = [make(user_id="ann") for _ in range(5)]
        bobs, foreign = make(user_id="bob"), make(user_id="ann", tenant_id=other_tenant)
        waiting = accept_one(user_id="ann")
        scope = Scope(tenant, "ann")
        assert count(db, scope) == {
            "jobs": 5,
            "files": 0,
            "uploads": 0,
            "batches": 0,
            "prompts": 0,
            "conversations": 0,
            "vector_stores": 0,
            "live": 1,
        }
        assert purge_all(db, scope) == 5
        assert count(db, scope)["jobs"] == purge_all(db, scope) == 0
        left = {row["id"] for row in query("SELECT id FROM jobs WHERE payload <> '{}'")}
        assert left == {bobs, foreign, waiting}
        assert set(anns).isdisjoint(left)
        (row,) = query("SELECT created_at FROM jobs WHERE id = :id", id=bobs)
        assert purge_all(db, Scope(tenant, before=row["created_at"])) == 0
        assert purge_all(db, Scope(tenant)) == 1
        assert query("SELECT count(*) AS n FROM jobs") == [{"n": 8}]
        accept(db, [new_flow(make_job, CHAIN)])
        assert count(db, Scope(tenant))["live"] == 2, "a job with steps is one"
