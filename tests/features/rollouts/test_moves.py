"""Queued jobs of a candidate that was rolled back go to the stable version."""

import json

from headrace.features.rollouts.moves import move_queued
from headrace.store.db.database import Database
from headrace.store.jobs import claims
from headrace.store.jobs.claims import Release
from headrace.store.jobs.jobs import Fallback
from headrace.store.streams.checkpoints import Checkpoint
from tests.features.rollouts.conftest import StartRollout
from tests.store.making import AcceptOne, Query

FALLBACK = Fallback({"input": {"prompt": "hello"}, "sampling": {"max_tokens": 3}}, 7, 10)

# The counts that triggers keep, and the rows that they count.
_KEPT = """
SELECT queue, CAST(sum(jobs) AS int) AS jobs, CAST(sum(tokens) AS int) AS tokens FROM {table}
GROUP BY queue HAVING sum(jobs) <> 0 OR sum(tokens) <> 0 ORDER BY queue
"""
_OPEN = "(SELECT queue, jobs, queued_tokens AS tokens FROM open_changes) AS open"
_TRUE = """
SELECT queue, CAST(count(*) AS int) AS jobs, CAST(sum(GREATEST(cost_tokens, input_tokens)) AS int) AS tokens
FROM jobs WHERE state = 'queued' GROUP BY queue ORDER BY queue
"""


def test_only_the_queued_jobs_of_the_rollout_move_and_stay_counted(
    begin: StartRollout, db: Database, accept_one: AcceptOne, query: Query
) -> None:
    rollout = begin()
    of_candidate = {"model_version": 2, "queue": "tiny@2", "rollout_id": rollout.id}
    plain, other = accept_one(**of_candidate), accept_one(**of_candidate, fallback=FALLBACK)
    running = accept_one(**of_candidate)
    asked_for = accept_one(model_version=2, queue="tiny@2")
    claims.claim(db, "worker", "tiny@2", [running], 60)
    assert [move_queued(db, rollout, 1) for _ in range(3)] == [1, 1, 0], "a bounded number at a time"
    rows = {row["id"]: row for row in query("SELECT * FROM jobs")}
    assert {job: rows[job]["queue"] for job in rows} == {
        plain: "tiny@1",
        other: "tiny@1",
        running: "tiny@2",
        asked_for: "tiny@2",
    }
    assert (rows[plain]["model_version"], rows[plain]["announced_at"]) == (1, None)
    assert rows[plain]["payload"] == rows[asked_for]["payload"]
    assert (json.loads(rows[other]["payload"]), rows[other]["input_tokens"], rows[other]["cost_tokens"]) == (
        FALLBACK.payload,
        FALLBACK.input_tokens,
        FALLBACK.cost_tokens,
    )
    assert query("SELECT * FROM job_fallbacks") == []
    true = query(_TRUE)
    assert query(_KEPT.format(table="queue_counts")) == true
    assert [row["tokens"] for row in query(_KEPT.format(table=_OPEN)) if row["tokens"]] == [
        row["tokens"] for row in true
    ]
    events = query("SELECT detail FROM job_events WHERE job_id = :id AND kind = 'moved'", id=plain)
    assert [row["detail"] for row in events] == [{"from_version": 2, "version": 1, "rollout": rollout.id}]


def test_what_a_candidate_had_emitted_is_not_continued(
    begin: StartRollout, db: Database, accept_one: AcceptOne, query: Query
) -> None:
    rollout = begin()
    job_id = accept_one(model_version=2, queue="tiny@2", rollout_id=rollout.id)
    claim = claims.claim(db, "worker", "tiny@2", [job_id], 60)[job_id]
    checkpoint = Checkpoint(("he",), ((1,),), ((claim.epoch, 0),))
    claims.release(db, [Release(job_id, claim.epoch, charge=True, crashed=True, checkpoint=checkpoint)])
    assert move_queued(db, rollout, 10) == 1
    again = claims.claim(db, "worker", "tiny@1", [job_id], 60)[job_id]
    assert (again.epoch, again.checkpoint, again.restarts_after) == (2, None, 1)
    assert (again.attempt, again.crashes) == (1, 0), "the candidate's failures do not count"
