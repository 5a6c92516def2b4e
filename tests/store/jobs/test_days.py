"""Events, ends and the ledger lie by day: days come and go as a whole, and no job loses what it has."""

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import make_url, text

from headrace.migrations.roles import let_in
from headrace.migrations.schema import upgrade
from headrace.store.db.database import Database
from headrace.store.db.roles import ROLES
from headrace.store.errors import Gone
from headrace.store.ids import first_id, new_id
from headrace.store.jobs import days
from headrace.store.jobs.claims import Finish, claim, finish
from headrace.store.jobs.erasure import purge_job
from headrace.store.jobs.jobs import list_jobs, timeline
from headrace.store.jobs.sweeps import purge
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants.usage import TimeBuckets, add_up_day, roll_up, usage_by
from headrace.workers.dispatcher.row_duties import row_duties
from tests.roles import ROLE_PASSWORD, as_worker
from tests.store.making import QUEUE, AcceptOne, Query

DAY_S = 86_400.0
FIRST_DAYS_AGO = 20
TTL_S = 10 * DAY_S
USAGE = {"input_tokens": 5, "output_tokens": 3}


@pytest.fixture
def own_settings(db: Database, settings: Settings) -> Iterator[Settings]:
    """A database of this test's own."""
    name = new_id("test")
    with db.autocommit() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = make_url(settings.database_url).set(database=name).render_as_string(hide_password=False)
    try:
        yield settings.model_copy(update={"database_url": url})
    finally:
        with db.autocommit() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def db(own_settings: Settings) -> Iterator[Database]:
    """A schema that was migrated twenty days ago, and whose keeper has been away since."""
    since = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=FIRST_DAYS_AGO)
    bounds = {"job_events": first_id("job", since), "job_terminal": first_id("job", since), "usage_ledger": since}
    with closing(Database(own_settings.database_url, application_name="tests")) as opened:
        upgrade(opened)
        let_in(opened, dict.fromkeys(ROLES, ROLE_PASSWORD))
        with opened.begin() as connection:
            for table, bound in bounds.items():
                connection.execute(text(f"ALTER TABLE {table} DETACH PARTITION {table}_old"))
                connection.execute(
                    text(f"ALTER TABLE {table} ATTACH PARTITION {table}_old FOR VALUES FROM (MINVALUE) TO ('{bound}')")
                )
        yield opened


@pytest.fixture
def keeper(db: Database, own_settings: Settings) -> Iterator[Database]:
    """As the dispatcher, which may not change tables itself."""
    with closing(Database(as_worker(own_settings).database_url, pool_size=1, application_name="tests")) as opened:
        yield opened


def made(days_ago: float) -> str:
    """Return the id of a job that was made then."""
    return first_id("job", datetime.now(UTC) - timedelta(days=days_ago)) + uuid4().hex[:20]


@pytest.fixture
def ended(db: Database, tenant: str, accept_one: AcceptOne, query: Query) -> Callable[[float], str]:
    """Let a job have been made and ended so many days ago; return its id."""

    def run(days_ago: float) -> str:
        job_id = accept_one(id=made(days_ago))
        claimed = claim(db, "worker", QUEUE, [job_id], 60)[job_id]
        done = Finish(job_id, claimed.epoch, JobState.SUCCEEDED, {"text": "x"}, None, USAGE, ["x"], tenant_id=tenant)
        assert finish(db, [done]) == {job_id}
        assert finish(db, [done]) == set(), "it ends once"
        then = "now() - make_interval(secs => :s)"
        query(f"UPDATE jobs SET completed_at = {then} WHERE id = :id", id=job_id, s=days_ago * DAY_S)
        query(f"UPDATE usage_ledger SET at = {then} WHERE job_id = :id", id=job_id, s=days_ago * DAY_S)
        return job_id

    return run


def lies_in(query: Query, job_id: str) -> str:
    """Return the partition of a job's events."""
    (row,) = query("SELECT DISTINCT tableoid::regclass::text AS part FROM job_events WHERE job_id = :id", id=job_id)
    return str(row["part"])


def drop_all(keeper: Database, most_left: int = days.MOST_LEFT) -> list[str]:
    dropped = []
    while name := days.drop_one(keeper, TTL_S, most_left=most_left):
        dropped.append(name)
    return dropped


def test_a_due_day_goes_as_a_whole_and_what_is_left_of_it_stays(
    db: Database, keeper: Database, tenant: str, query: Query, ended: Callable[[float], str]
) -> None:
    assert days.make_ahead(keeper) == 3 * (FIRST_DAYS_AGO + 1 + days.AHEAD_DAYS)
    assert days.make_ahead(keeper) == 0
    ids = [ended(days_ago) for days_ago in (15, 12.5, 12, 5)]
    oldest, younger, *_, new = ids
    parts = {job_id: lies_in(query, job_id) for job_id in ids}
    before = {job_id: timeline(db, tenant, job_id) for job_id in ids}
    purge_job(db, tenant, younger, actor="tests")
    assert purge(db, TTL_S, DAY_S, 10) == 1
    dropped = drop_all(keeper)
    assert {parts[oldest], parts[younger], "job_events_old", "job_terminal_old"} < set(dropped)
    assert parts[new] not in dropped
    assert (lies_in(query, oldest), lies_in(query, new)) == ("job_events_rest", parts[new])
    with pytest.raises(Gone):
        timeline(db, tenant, younger)
    left = [job_id for job_id in ids if job_id != younger]
    assert {job_id: timeline(db, tenant, job_id) for job_id in left} == {job_id: before[job_id] for job_id in left}
    assert [job.id for job in list_jobs(db, tenant)] == left[::-1]
    assert query("SELECT count(*) AS n FROM job_terminal") == [{"n": 3}]
    for job_id in left:
        assert purge_job(db, tenant, job_id, actor="tests")
    assert purge(db, TTL_S, DAY_S, 10) == 2
    assert [days.clear_rest(keeper, TTL_S, 10), days.clear_rest(keeper, TTL_S, 10)] == [8, 0]
    assert timeline(db, tenant, new) == before[new]


def test_a_day_of_which_many_jobs_are_left_stays(
    db: Database, keeper: Database, tenant: str, query: Query, ended: Callable[[float], str]
) -> None:
    days.make_ahead(keeper)
    one, other = ended(15), ended(15)
    part = lies_in(query, one)
    assert part not in drop_all(keeper, most_left=1)
    purge_job(db, tenant, one, actor="tests")
    assert purge(db, TTL_S, DAY_S, 10) == 1
    assert part in drop_all(keeper, most_left=1)
    assert [event.kind for event in timeline(db, tenant, other)] == ["queued", "started", "succeeded"]


def test_without_a_keeper_jobs_go_on_and_it_catches_up(
    db: Database, keeper: Database, tenant: str, query: Query, ended: Callable[[float], str], own_settings: Settings
) -> None:
    while_away = [ended(days_ago) for days_ago in (12, 3, 0)]
    assert {lies_in(query, job_id) for job_id in while_away} == {"job_events_rest"}
    settings = own_settings.model_copy(update={"record_ttl_s": TTL_S})
    (duty,) = [duty for (duty,) in row_duties(keeper, settings) if duty.name == "keep_days"]
    while duty.run():
        pass
    later = ended(-2)
    assert lies_in(query, later).startswith("job_events_2")
    assert [job.id for job in list_jobs(db, tenant)] == [later, *while_away[::-1]]
    assert purge_job(db, tenant, while_away[0], actor="tests")
    assert purge(db, TTL_S, DAY_S, 10) == 1
    duty.run()
    assert query("SELECT count(*) AS n FROM job_events_rest") == [{"n": 6}]
    assert all(len(timeline(db, tenant, job_id)) == 3 for job_id in [*while_away[1:], later])


def test_a_day_of_the_ledger_is_added_up_and_dropped(
    db: Database, keeper: Database, tenant: str, query: Query, ended: Callable[[float], str]
) -> None:
    ended(3)  # before there was its day: in the rest
    days.make_ahead(keeper)
    for days_ago in (25, 15, 15, 12, 5):
        ended(days_ago)
    start = int(datetime.now(UTC).timestamp() // DAY_S - 30) * int(DAY_S)
    by_day = TimeBuckets(start, int(DAY_S), 31)
    before = usage_by(db, tenant, by_day)
    assert sum(group.num_jobs for group in before) == 6
    dropped = []
    while name := add_up_day(keeper, TTL_S):
        dropped.append(name)
    assert dropped[0] == "usage_ledger_old"
    assert len(dropped) == 1 + FIRST_DAYS_AGO - TTL_S / DAY_S
    assert usage_by(db, tenant, by_day) == before
    assert query("SELECT count(*) AS n FROM usage_ledger") == [{"n": 2}]
    assert roll_up(keeper, tenant, DAY_S, 10) == 2
    assert usage_by(db, tenant, by_day) == before
