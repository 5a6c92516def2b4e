"""Who may go ahead of the ready window, by what everybody has under way."""

import pytest

from store.claims import Release, claim, release
from store.db import Database
from store.even_shares import Entry, Lately, read_entries, within_share
from store.jobs import NewJob, accept
from store.payloads import ServiceClass
from tests.store.conftest import MakeJob

QUEUE = "tiny@1"


@pytest.fixture
def flooded(db: Database, make_job: MakeJob) -> list[NewJob]:
    """One tenant has 8 jobs running, 12 announced and 5 waiting."""
    jobs = [make_job(announce=True) for _ in range(20)]
    accept(db, jobs)
    claim(db, "w", QUEUE, [job.id for job in jobs[:8]], 30)
    accept(db, [make_job(announce=False) for _ in range(5)])
    return jobs


def entries(tenant_id: str, count: int, rank: int = 1) -> list[Entry]:
    return [Entry(f"job_{number}", QUEUE, tenant_id, rank) for number in range(count)]


@pytest.mark.usefixtures("flooded")
def test_another_tenants_jobs_go_ahead_up_to_its_even_share(
    db: Database, tenant: str, other_tenant: str, make_job: MakeJob
) -> None:
    assert within_share(db, entries(tenant, 3), Lately()) == set(), "it has more than its share"
    assert within_share(db, entries(other_tenant, 9), Lately()) == {"job_0", "job_1", "job_2", "job_3"}, "half of eight"
    accept(db, [make_job(tenant_id=other_tenant, goes_ahead=True) for _ in range(3)])
    assert within_share(db, entries(other_tenant, 9), Lately()) == {"job_0"}, "three are announced"
    third = [Entry("job_x", QUEUE, "ten_third", 1)]
    assert within_share(db, [*entries(other_tenant, 1), *third], Lately()) == {"job_x"}, "a third of eight is two"


@pytest.mark.usefixtures("flooded")
def test_the_announced_are_not_counted_twice(db: Database, other_tenant: str, make_job: MakeJob) -> None:
    jobs = [make_job(tenant_id=other_tenant, goes_ahead=True) for _ in range(6)]
    accept(db, jobs)
    ids = [job.id for job in jobs]
    assert within_share(db, read_entries(db, ids), Lately(), are_announced=True) == set(ids[:4])


@pytest.mark.usefixtures("flooded")
def test_a_better_class_is_not_overtaken(db: Database, tenant: str, other_tenant: str, make_job: MakeJob) -> None:
    accept(db, [make_job(announce=False, service_class=ServiceClass.INTERACTIVE)])
    assert within_share(db, entries(other_tenant, 1), Lately()) == set()
    assert within_share(db, entries(other_tenant, 1, rank=0), Lately()) == {"job_0"}


def test_what_ran_a_moment_ago_counts_where_nothing_does_any_more(
    db: Database, flooded: list[NewJob], other_tenant: str
) -> None:
    now = 100.0
    lately = Lately(clock=lambda: now)
    assert within_share(db, entries(other_tenant, 5), lately) == {"job_0", "job_1", "job_2", "job_3"}
    assert len(release(db, [Release(job.id, 1) for job in flooded[:8]])) == 8
    assert within_share(db, entries(other_tenant, 5), Lately()) == set()
    assert within_share(db, entries(other_tenant, 5), lately) == {"job_0", "job_1", "job_2", "job_3"}
    now += 1.1
    assert within_share(db, entries(other_tenant, 5), lately) == set()


def test_alone_or_where_nothing_runs_nobody_goes_ahead(
    db: Database, tenant: str, other_tenant: str, make_job: MakeJob
) -> None:
    accept(db, [make_job() for _ in range(3)])
    assert within_share(db, entries(other_tenant, 1), Lately()) == set()
    ours = make_job()
    accept(db, [ours])
    claim(db, "w", QUEUE, [ours.id], 30)
    assert within_share(db, entries(tenant, 1), Lately()) == set()


@pytest.mark.usefixtures("flooded")
def test_a_job_that_goes_ahead_is_announced_although_others_wait(
    db: Database, other_tenant: str, make_job: MakeJob
) -> None:
    ahead, behind = accept(
        db, [make_job(tenant_id=other_tenant, goes_ahead=True), make_job(tenant_id=other_tenant, announce=True)]
    )
    assert (ahead.announced, behind.announced) == (True, False)  # type: ignore[union-attr]
