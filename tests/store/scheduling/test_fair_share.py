"""Jobs that may overtake the ready window, by the running jobs of all tenants."""

from collections.abc import Callable
from random import Random

import pytest
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.jobs.claims import Finish, Release, claim, finish, release
from headrace.store.jobs.jobs import NewJob, accept
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.scheduling.backlog import LaneCandidate, RecentMaximum, read_candidates, within_share
from headrace.store.scheduling.dispatch_queries import waiting_queues
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from tests.store.making import MakeJob, Query

QUEUE = "tiny@1"


@pytest.fixture
def flooded(db: Database, make_job: MakeJob) -> list[NewJob]:
    """One tenant has 8 jobs running, 12 announced and 5 waiting."""
    jobs = [make_job(announce=True) for _ in range(20)]
    accept(db, jobs)
    claim(db, "w", QUEUE, [job.id for job in jobs[:8]], 30)
    accept(db, [make_job(announce=False) for _ in range(5)])
    return jobs


def entries(tenant_id: str, count: int, rank: int = 1) -> list[LaneCandidate]:
    return [LaneCandidate(f"job_{number}", QUEUE, tenant_id, rank) for number in range(count)]


@pytest.mark.usefixtures("flooded")
def test_another_tenants_jobs_go_ahead_up_to_its_even_share(
    db: Database, tenant: str, other_tenant: str, make_job: MakeJob
) -> None:
    assert within_share(db, entries(tenant, 3), RecentMaximum()) == set(), "it has more than its share"
    assert within_share(db, entries(other_tenant, 9), RecentMaximum()) == {"job_0", "job_1", "job_2", "job_3"}, (
        "half of eight"
    )
    accept(db, [make_job(tenant_id=other_tenant, goes_ahead=True) for _ in range(3)])
    assert within_share(db, entries(other_tenant, 9), RecentMaximum()) == {"job_0"}, "three are announced"
    third = [LaneCandidate("job_x", QUEUE, "ten_third", 1)]
    assert within_share(db, [*entries(other_tenant, 1), *third], RecentMaximum()) == {"job_x"}, (
        "a third of eight is two"
    )


@pytest.mark.usefixtures("flooded")
def test_the_announced_are_not_counted_twice(db: Database, other_tenant: str, make_job: MakeJob) -> None:
    jobs = [make_job(tenant_id=other_tenant, goes_ahead=True) for _ in range(6)]
    accept(db, jobs)
    ids = [job.id for job in jobs]
    assert within_share(db, read_candidates(db, ids), RecentMaximum(), are_announced=True) == set(ids[:4])


@pytest.mark.usefixtures("flooded")
def test_a_better_class_is_not_overtaken(db: Database, tenant: str, other_tenant: str, make_job: MakeJob) -> None:
    accept(db, [make_job(announce=False, service_class=ServiceClass.INTERACTIVE)])
    assert within_share(db, entries(other_tenant, 1), RecentMaximum()) == set()
    assert within_share(db, entries(other_tenant, 1, rank=0), RecentMaximum()) == {"job_0"}


@pytest.mark.usefixtures("flooded")
def test_a_better_class_goes_before_the_announced_jobs_of_a_worse_one(
    db: Database, tenant: str, other_tenant: str, make_job: MakeJob
) -> None:
    six = {f"job_{number}" for number in range(6)}
    assert within_share(db, entries(tenant, 9, rank=0), RecentMaximum()) == six, "three quarters of eight"
    assert within_share(db, entries(other_tenant, 9, rank=0), RecentMaximum()) == six, "no one else has such jobs"
    jobs = [make_job(goes_ahead=True, service_class=ServiceClass.INTERACTIVE) for _ in range(2)]
    accept(db, jobs)
    four = {f"job_{number}" for number in range(4)}
    assert within_share(db, entries(tenant, 9, rank=0), RecentMaximum()) == four, "two are announced"
    assert within_share(db, entries(other_tenant, 9, rank=0), RecentMaximum()) == four, (
        "half of eight of all classes is more than half of the six of its class"
    )
    candidates = read_candidates(db, [job.id for job in jobs])
    assert within_share(db, candidates, RecentMaximum(), are_announced=True) == {job.id for job in jobs}


def test_what_ran_a_moment_ago_counts_where_nothing_does_any_more(
    db: Database, flooded: list[NewJob], other_tenant: str
) -> None:
    now = 100.0
    lately = RecentMaximum(clock=lambda: now)
    assert within_share(db, entries(other_tenant, 5), lately) == {"job_0", "job_1", "job_2", "job_3"}
    assert len(release(db, [Release(job.id, 1) for job in flooded[:8]])) == 8
    assert within_share(db, entries(other_tenant, 5), RecentMaximum()) == set()
    assert within_share(db, entries(other_tenant, 5), lately) == {"job_0", "job_1", "job_2", "job_3"}
    now += 1.1
    assert within_share(db, entries(other_tenant, 5), lately) == set()


def test_alone_or_where_nothing_runs_nobody_goes_ahead(
    db: Database, tenant: str, other_tenant: str, make_job: MakeJob
) -> None:
    accept(db, [make_job() for _ in range(3)])
    assert within_share(db, entries(other_tenant, 1), RecentMaximum()) == set()
    ours = make_job()
    accept(db, [ours])
    claim(db, "w", QUEUE, [ours.id], 30)
    assert within_share(db, entries(tenant, 1), RecentMaximum()) == set()


@pytest.mark.usefixtures("flooded")
def test_a_job_that_goes_ahead_is_announced_although_others_wait(
    db: Database, other_tenant: str, make_job: MakeJob
) -> None:
    ahead, behind = accept(
        db, [make_job(tenant_id=other_tenant, goes_ahead=True), make_job(tenant_id=other_tenant, announce=True)]
    )
    assert (ahead.announced, behind.announced) == (True, False)  # type: ignore[union-attr]


def blocks_read(db: Database, look: Callable[[], object]) -> int:
    """Return how many blocks of the jobs' table a call reads; ``db`` has one connection."""

    def counted() -> int:
        with db.autocommit() as connection:
            connection.execute(text("SELECT pg_stat_force_next_flush()"))
            sql = "SELECT heap_blks_read + heap_blks_hit FROM pg_statio_user_tables WHERE relname = 'jobs'"
            return int(connection.execute(text(sql)).scalar_one())

    before = counted()
    look()
    return counted() - before


@pytest.mark.parametrize("look", ["within_share", "waiting_queues"])
def test_running_jobs_are_found_without_the_entries_of_those_that_ended(
    db: Database, settings: Settings, tenant: str, make_job: MakeJob, query: Query, look: str
) -> None:
    single = Database(settings.database_url, pool_size=1, application_name="single")
    with single.autocommit() as connection:
        # So that the planner prefers a bitmap scan, as it does where many more jobs have ended.
        connection.execute(text("SET random_page_cost = 100"))
    query("ALTER TABLE jobs SET (autovacuum_enabled = off)")
    jobs = [make_job(deadline_s=3600 + number * 7919 % 3000) for number in range(2048)]
    for start in range(0, len(jobs), 256):
        accept(db, jobs[start : start + 256])
    Random(1).shuffle(jobs)
    running = claim(db, "w", QUEUE, [job.id for job in jobs[:-8]], 30)
    ended = [running[job.id] for job in jobs[:-40]]
    for start in range(0, len(ended), 256):
        part = ended[start : start + 256]
        finish(db, [Finish(one.job_id, one.epoch, JobState.CANCELLED, None, None, None) for one in part])
    query("ANALYZE jobs")
    looks = {
        "within_share": lambda: within_share(single, entries(tenant, 1), RecentMaximum()),
        "waiting_queues": lambda: waiting_queues(single),
    }
    read = [blocks_read(single, looks[look]) for _ in range(4)]
    assert read[-1] < 100, f"of 40 running jobs and 8 queued ones, among 2000 that ended: {read}"
    single.close()
    query("ALTER TABLE jobs RESET (autovacuum_enabled)")
