"""The response cache in the store: which job computes, which gets the answer of which, and when an entry is gone."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from threading import Barrier
from typing import Any

import pytest

from headrace.features.response_cache import entries as response_cache
from headrace.features.response_cache import sharers
from headrace.features.response_cache.entries import CacheLookup
from headrace.store.db.database import Database
from headrace.store.jobs.claims import Claim, Finish, claim, finish
from headrace.store.jobs.erasure import erase
from headrace.store.jobs.jobs import Accepted, Idempotency, Job, accept, get, request_cancel, stored_deltas, timeline
from headrace.store.jobs.sweeps import sweep_leases
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.registry.models import register_version
from headrace.store.scheduling.dispatch_queries import take_waiting, waiting_queues
from headrace.store.schema.job_states import CacheResult, JobState
from headrace.store.tenants.usage import Price, set_price
from tests.sealing import TurnedSeal
from tests.store.making import QUEUE, AcceptOne, MakeJob, Query

HOUR = CacheLookup("d1", 3600.0)
USAGE = {"input_tokens": 5, "output_tokens": 2, "queue_ms": 1.0, "first_token_ms": 2.0, "compute_ms": 3.0}


@pytest.fixture
def ask(db: Database, make_job: MakeJob) -> Callable[..., str]:
    """Accept one job that uses the cache; return its id."""

    def ask(**changes: Any) -> str:
        (outcome,) = accept(db, [make_job(**{"lookup": HOUR, **changes})])
        assert isinstance(outcome, Accepted)
        return outcome.job_id

    return ask


def start(db: Database, *ids: str) -> dict[str, Claim]:
    return claim(db, "worker", QUEUE, ids, 60.0)


def end(db: Database, claimed: Claim, **changes: Any) -> None:
    values: dict[str, Any] = {"output": {"text": "Hello", "finish_reason": "stop"}, "error": None, "usage": USAGE}
    values |= {"deltas": ("Hel", "lo"), "tenant_id": claimed.tenant_id, "is_source": claimed.is_source} | changes
    state = values.pop("state", JobState.SUCCEEDED)
    assert finish(db, [Finish(claimed.job_id, claimed.epoch, state, **values)]) == {claimed.job_id}


def seen(db: Database, tenant: str, job_id: str) -> Job:
    return get(db, tenant, job_id)


class TestSharing:
    def test_of_a_hundred_equal_requests_one_is_computed_also_after_its_worker_was_lost(
        self, db: Database, tenant: str, make_job: MakeJob, query: Query
    ) -> None:
        barrier = Barrier(4)

        def submit(_: int) -> list[str]:
            barrier.wait(30)
            return [found.job_id for found in accept(db, jobs()) if isinstance(found, Accepted)]

        def jobs() -> list[Any]:
            return [make_job(lookup=HOUR, payload={"input": {"prompt": "hello"}}) for _ in range(25)]

        with ThreadPoolExecutor(4) as pool:
            ids = [job_id for part in pool.map(submit, range(4)) for job_id in part]
        sources = [row["id"] for row in query("SELECT id FROM jobs WHERE cache = 'miss'")]
        assert len(ids) == 100
        assert len(sources) == 1
        assert set(start(db, *ids)) == set(sources)
        end(db, *start_again(db, sources[0]))
        found = query("SELECT state, count(*) AS n, max(epoch) AS epoch FROM jobs GROUP BY state")
        assert found == [{"state": "succeeded", "n": 100, "epoch": 2}]
        assert query("SELECT outcome FROM attempts ORDER BY epoch") == [
            {"outcome": "worker_lost"},
            {"outcome": "succeeded"},
        ]
        assert query("SELECT count(*) AS n FROM job_terminal") == [{"n": 100}]

    def test_a_sharer_has_the_answer_and_the_stream_of_its_source(
        self, db: Database, tenant: str, ask: Callable[..., str]
    ) -> None:
        source, sharer = ask(), ask()
        waiting = seen(db, tenant, sharer)
        assert (waiting.cache, waiting.cache_source, waiting.streamed_as) == ("shared", source, source)
        end(db, start(db, source)[source])
        job = seen(db, tenant, sharer)
        assert (job.state, job.output, job.epoch) == (JobState.SUCCEEDED, {"text": "Hello", "finish_reason": "stop"}, 1)
        assert (job.attempt, job.started_at, job.streamed_as) == (0, None, sharer)
        assert job.usage is not None
        assert (job.usage["cached_tokens"], job.usage["output_tokens"], job.usage["compute_ms"]) == (5, 2, 0)
        stream = stored_deltas(db, tenant, sharer)
        assert stream is not None
        assert (stream.deltas, stream.lineage) == (["Hel", "lo"], ((1, 0),))
        assert [event.kind for event in timeline(db, tenant, sharer)] == ["queued", "succeeded"]

    def test_a_hit_ends_as_it_is_accepted(self, db: Database, tenant: str, ask: Callable[..., str]) -> None:
        end(db, start(db, source := ask())[source])
        hit = seen(db, tenant, ask())
        assert (hit.cache, hit.cache_source, hit.state) == ("hit", source, JobState.SUCCEEDED)
        assert hit.output == {"text": "Hello", "finish_reason": "stop"}
        assert hit.num_deltas == 2

    def test_a_sharer_is_in_no_queue_of_a_worker(
        self, db: Database, ask: Callable[..., str], accept_one: AcceptOne
    ) -> None:
        source, sharer = ask(announce=False), ask(announce=False)
        assert [depth.queue for depth in waiting_queues(db)] == [QUEUE]
        assert take_waiting(db, QUEUE, 10) == [source]
        assert claim(db, "worker", QUEUE, [sharer], 60.0) == {}

    def test_other_tenants_digests_and_better_classes_share_nothing(
        self, db: Database, tenant: str, other_tenant: str, ask: Callable[..., str]
    ) -> None:
        source = ask(service_class=ServiceClass.BATCH)
        assert seen(db, other_tenant, ask(tenant_id=other_tenant)).cache == CacheResult.MISS
        assert seen(db, tenant, ask(lookup=CacheLookup("d2", 3600.0))).cache == CacheResult.MISS
        better = ask()
        assert seen(db, tenant, better).cache == CacheResult.MISS
        assert seen(db, tenant, ask(service_class=ServiceClass.BATCH)).cache_source == better
        end(db, start(db, source)[source])
        assert seen(db, tenant, better).state is JobState.QUEUED

    def test_a_replayed_request_has_no_part_in_it(self, db: Database, tenant: str, make_job: MakeJob) -> None:
        key = Idempotency("POST /v1/jobs", "k", "f")
        first, again = (make_job(idempotency=key, lookup=HOUR) for _ in range(2))
        other = make_job(lookup=HOUR)
        outcomes = [found for job in (first, again, other) for found in accept(db, [job])]
        assert [found.job_id for found in outcomes if isinstance(found, Accepted)] == [first.id, first.id, other.id]
        assert seen(db, tenant, other.id).cache_source == first.id


def start_again(db: Database, job_id: str) -> list[Claim]:
    """Claim a job whose worker was lost."""
    with db.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE state = 'running'")
    sweep_leases(db, blame=False)
    return list(start(db, job_id).values())


class TestWithoutAnAnswer:
    @pytest.mark.parametrize("how", ["failed", "cancelled"])
    def test_the_first_sharer_is_computed_and_has_the_others(
        self, db: Database, tenant: str, ask: Callable[..., str], query: Query, how: str
    ) -> None:
        source, heir, other = ask(), ask(), ask()
        if how == "failed":
            error = {"code": "internal_error", "message": "", "retryable": False}
            end(db, start(db, source)[source], state=JobState.FAILED, output=None, error=error, usage=None, deltas=())
        else:
            request_cancel(db, tenant, source)
        assert sharers.sweep(db, 100).promoted == (heir,)
        assert (seen(db, tenant, heir).cache, seen(db, tenant, heir).queue) == ("miss", QUEUE)
        assert seen(db, tenant, other).cache_source == heir
        assert seen(db, tenant, ask()).cache_source == heir
        end(db, *start(db, heir).values())
        assert seen(db, tenant, other).state is JobState.SUCCEEDED
        counted = "SELECT queue, CAST(sum(jobs) AS int) AS jobs FROM {} GROUP BY queue HAVING sum(jobs) <> 0"
        assert query(counted.format("queue_counts")) == []
        assert query(counted.format("open_changes")) == []

    def test_the_attempts_of_the_heir_come_after_those_of_the_source(
        self, db: Database, tenant: str, ask: Callable[..., str]
    ) -> None:
        source, heir = ask(), ask()
        start(db, source)
        claimed = start_again(db, source)[0]
        assert claimed.epoch == 2
        end(db, claimed, state=JobState.CANCELLED, output=None, usage=None, deltas=())
        sharers.sweep(db, 100)
        assert start(db, heir)[heir].epoch == 3

    def test_an_answer_that_the_policy_blocks_is_blocked_for_all(
        self, db: Database, tenant: str, ask: Callable[..., str]
    ) -> None:
        source, sharer = ask(), ask()
        error = {"code": "policy_blocked_output", "message": "no", "retryable": False}
        end(db, start(db, source)[source], state=JobState.FAILED, output=None, error=error, deltas=())
        job = seen(db, tenant, sharer)
        assert (job.state, (job.error or {})["code"]) == (JobState.FAILED, "policy_blocked_output")

    def test_a_sharer_that_the_source_has_missed_is_answered_by_the_sweep(
        self, db: Database, tenant: str, ask: Callable[..., str]
    ) -> None:
        source, sharer = ask(), ask()
        end(db, start(db, source)[source], is_source=False)
        assert seen(db, tenant, sharer).state is JobState.QUEUED
        assert sharers.sweep(db, 100).answered == (sharer,)
        assert seen(db, tenant, sharer).output == {"text": "Hello", "finish_reason": "stop"}

    def test_the_answer_of_another_version_is_not_used(
        self, db: Database, tenant: str, ask: Callable[..., str], query: Query
    ) -> None:
        source, sharer = ask(), ask()
        claimed = start(db, source)[source]
        query("UPDATE jobs SET model_version = 2 WHERE id = :id", id=source)
        end(db, claimed)
        assert seen(db, tenant, sharer).state is JobState.QUEUED
        assert seen(db, tenant, ask()).cache == CacheResult.MISS
        assert sharers.sweep(db, 100).promoted == (sharer,)

    def test_an_answer_without_its_key_is_computed_again(
        self, db: Database, tenant: str, ask: Callable[..., str]
    ) -> None:
        db.seal = TurnedSeal("k1")
        end(db, start(db, source := ask())[source])
        db.seal = TurnedSeal("k2")
        hit = ask()
        assert seen(db, tenant, hit).state is JobState.QUEUED
        assert sharers.sweep(db, 100).promoted == (hit,)

    def test_a_source_that_still_runs_is_left_alone(self, db: Database, ask: Callable[..., str]) -> None:
        start(db, ask())
        ask()
        assert sharers.sweep(db, 100) == sharers.SharersSwept()


class TestEntries:
    def test_an_old_answer_is_computed_anew(self, db: Database, tenant: str, ask: Callable[..., str]) -> None:
        end(db, start(db, source := ask())[source])
        with db.begin() as connection:
            connection.exec_driver_sql("UPDATE jobs SET completed_at = completed_at - interval '2 h'")
        again = ask()
        assert seen(db, tenant, again).cache == CacheResult.MISS
        end(db, start(db, again)[again])
        assert seen(db, tenant, ask()).cache_source == again

    def test_the_entry_goes_with_the_contents_of_its_job(
        self, db: Database, tenant: str, ask: Callable[..., str], query: Query
    ) -> None:
        end(db, start(db, source := ask())[source])
        with db.begin() as connection:
            erase(connection, [source])
        assert query("SELECT FROM cache_entries") == []
        assert seen(db, tenant, ask()).cache == CacheResult.MISS

    def test_a_tenant_keeps_its_newest_entries(self, db: Database, ask: Callable[..., str], query: Query) -> None:
        ids = [ask(lookup=CacheLookup(f"d{number}", 60.0)) for number in range(4)]
        assert response_cache.purge(db, 60.0, 3, 10) == 1
        assert [row["job_id"] for row in query("SELECT job_id FROM cache_entries ORDER BY created_at")] == ids[1:]
        end(db, start(db, ids[1])[ids[1]])
        with db.begin() as connection:
            connection.exec_driver_sql("UPDATE jobs SET completed_at = completed_at - interval '2 min'")
        assert response_cache.purge(db, 60.0, 3, 10) == 1
        assert response_cache.purge(db, 60.0, 3, 10) == 0

    def test_each_copy_is_sealed_for_its_own_job(
        self, db: Database, tenant: str, ask: Callable[..., str], query: Query
    ) -> None:
        db.seal = TurnedSeal("k1")
        source, sharer = ask(), ask()
        end(db, start(db, source)[source])
        hit = ask()
        for job_id in (sharer, hit):
            assert seen(db, tenant, job_id).output == {"text": "Hello", "finish_reason": "stop"}
            stream = stored_deltas(db, tenant, job_id)
            assert stream is not None
            assert stream.deltas == ["Hel", "lo"]
        assert query("SELECT FROM jobs WHERE CAST(output AS text) LIKE '%Hello%'") == []


def test_the_output_of_a_sharer_costs_nothing(db: Database, tenant: str, ask: Callable[..., str]) -> None:
    register_version(
        db,
        model="tiny",
        runner="fake",
        source="fake:tiny",
        digest="0" * 64,
        dtype="float32",
        context_window=512,
        files={},
        actor="tests",
    )
    set_price(db, "tiny", 1, Price(Decimal(10**6), Decimal(10**5), Decimal(10**6)), actor="tests")
    source, sharer = ask(), ask()
    end(db, start(db, source)[source])
    costs = [(seen(db, tenant, job_id).usage or {})["cost"] for job_id in (source, sharer, ask())]
    assert costs == [7, 0.5, 0.5]
