"""What a forecast reads of ended jobs: times and tokens of one queue, of all tenants."""

from headrace.features.planner.job_history import read_ended
from headrace.store.db.database import Database
from headrace.store.jobs.claims import Finish, Release, claim, finish, release
from headrace.store.payloads.job_payload import CLASS_RANKS, ServiceClass
from headrace.store.schema.job_states import JobState
from tests.store.making import QUEUE, AcceptOne, Query

USAGE = {"input_tokens": 5, "output_tokens": 7, "first_token_ms": 1500.0, "queue_ms": 1.0, "compute_ms": 2.0}


def end(db: Database, job_id: str, owner: str, queue: str = QUEUE) -> None:
    (claimed,) = claim(db, owner, queue, [job_id], 60.0).values()
    assert finish(db, [Finish(job_id, claimed.epoch, JobState.SUCCEEDED, {"text": "Hi"}, None, USAGE, ("Hi",))])


def test_ended_jobs_of_the_queue_are_read_with_their_last_attempt(
    db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query
) -> None:
    first = accept_one(service_class=ServiceClass.BATCH)
    again = accept_one(tenant_id=other_tenant)
    old, elsewhere, _queued = accept_one(), accept_one(queue="other@1"), accept_one()
    claim(db, "lost", QUEUE, [again], 60.0)
    release(db, [Release(again, 1)])
    for job_id in (first, again, old):
        end(db, job_id, "w1")
    end(db, elsewhere, "w1", "other@1")
    query("UPDATE jobs SET created_at = created_at - interval '2 days' WHERE id = :id", id=old)
    found = read_ended(db, QUEUE, 3600.0)
    assert [(one.tenant_id, one.worker, one.is_typical) for one in found] == [
        (tenant, "w1", True),
        (other_tenant, "w1", False),
    ]
    one = found[0]
    assert (one.class_rank, one.input_tokens, one.cost_tokens) == (CLASS_RANKS[ServiceClass.BATCH], 5, 13)
    assert (one.output_tokens, one.first_token_s) == (7, 1.5)
    assert one.created_at <= one.started_at <= one.ended_at < one.deadline_at
    assert len(read_ended(db, QUEUE, 3 * 86_400.0)) == 3
    assert [job.tenant_id for job in read_ended(db, QUEUE, 3600.0, most=1)] == [other_tenant], "the newest"
