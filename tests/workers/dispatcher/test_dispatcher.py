"""The dispatcher on real Postgres and Valkey: each duty through its effect, then the process as a whole."""

import asyncio
import json
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import create_engine, make_url, text
from structlog.testing import capture_logs

from headrace.features.retention import dispatcher as retention_duties
from headrace.store.db.database import Database
from headrace.store.db.leader_election import Leadership
from headrace.store.errors import Unavailable
from headrace.store.ids import new_id
from headrace.store.jobs import sweeps
from headrace.store.jobs.claims import claim
from headrace.store.jobs.jobs import Job, NewJob, accept, get
from headrace.store.metrics.dispatcher_metrics import DispatcherMetrics
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.scheduling import queues
from headrace.store.scheduling.backlog import read_backlog
from headrace.store.scheduling.dispatch_queries import QueueDepth, claim_candidates
from headrace.store.scheduling.service_rate import Rate
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.streams import stream_log
from headrace.store.streams.hub import Hub
from headrace.store.streams.stream_log import GENERATION_KEY, stream_key
from headrace.store.tenants.api_keys import create_tenant
from headrace.store.tracing.tracing import OFF
from headrace.workers.dispatcher import row_duties
from headrace.workers.dispatcher.dispatcher import Dispatcher
from headrace.workers.dispatcher.dispatcher_part import DispatcherContext
from headrace.workers.dispatcher.job_sweeper import OutageGrace
from headrace.workers.dispatcher.ready_window import num_of_batch, num_to_announce, num_to_repeat
from headrace.workers.health import LoopHeartbeat, readiness
from tests.cases import full, of
from tests.processes import WAIT_S, Process, StartProcess, free_port, python, until, wait_for
from tests.roles import as_worker
from tests.workers.receiver import Receiver

ROOT = Path(__file__).parents[3]
QUEUE = "tiny@1"

Make = Callable[..., Dispatcher]
Submit = Callable[..., list[str]]
Read = Callable[[str], Job]


@pytest.fixture
def make(settings: Settings) -> Iterator[Callable[..., Dispatcher]]:
    """Build dispatchers with other settings, and close them in the end."""
    made: list[Dispatcher] = []

    def make(**changes: object) -> Dispatcher:
        made.append(Dispatcher(settings.model_copy(update=changes)))
        return made[-1]

    yield make
    for dispatcher in made:
        dispatcher.close()


@pytest.fixture
def dispatcher(make: Make) -> Dispatcher:
    return make(ready_window=10)


@pytest.fixture
def running(dispatcher: Dispatcher) -> Iterator[Dispatcher]:
    thread = threading.Thread(target=dispatcher.run)
    thread.start()
    yield dispatcher
    dispatcher.stop()
    thread.join(WAIT_S)
    assert not thread.is_alive()


@pytest.fixture
def tenant(db: Database) -> str:
    return create_tenant(db, new_id("tenant"))


@pytest.fixture
def submit(db: Database, tenant: str) -> Callable[..., list[str]]:
    """Accept jobs without announcing them, and return their ids."""

    def submit(count: int = 1, **changes: Any) -> list[str]:
        values: dict[str, Any] = {
            "tenant_id": tenant,
            "task": "generate",
            "model": "tiny",
            "model_version": 1,
            "queue": QUEUE,
            "service_class": ServiceClass.STANDARD,
            "priority": 5,
            "payload": {"input": {"prompt": "never shown"}, "sampling": {}},
            "input_tokens": 1,
            "cost_tokens": 10,
            "metadata": {},
            "webhook": None,
            "max_attempts": 3,
            "deadline_s": 3600.0,
            "idempotency": None,
            "announce": False,
        }
        jobs = [NewJob(**{**values, "id": new_id("job"), **changes}) for _ in range(count)]
        accept(db, jobs)
        return [job.id for job in jobs]

    return submit


@pytest.fixture
def read(db: Database, tenant: str) -> Callable[[str], Job]:
    return lambda job_id: get(db, tenant, job_id)


def hinted(client: redis.Redis, queue: str = QUEUE) -> list[str]:
    """The job ids in a queue, next one first."""
    return [json.loads(raw)["headers"]["id"] for raw in reversed(client.lrange(queue, 0, -1))]


def depth(*, waiting: int = 0, announced: int = 0, oldest_s: float | None = None) -> QueueDepth:
    return QueueDepth(QUEUE, waiting, announced, oldest_s)


@pytest.mark.parametrize(
    ("waiting", "in_redis", "expected"), [(0, 0, 0), (5, 0, 5), (50, 0, 10), (50, 7, 3), (50, 10, 0), (50, 25, 0)]
)
def test_the_window_is_filled_and_never_over(waiting: int, in_redis: int, expected: int) -> None:
    assert num_to_announce(depth(waiting=waiting), in_redis, window=10) == expected


@pytest.mark.parametrize(
    ("announced", "oldest_s", "in_redis", "expected"),
    [
        (0, None, 0, 0),
        (5, 1.0, 0, 0),  # on its way, or being claimed
        (5, 60.0, 5, 0),  # all there: the workers are just slow
        (5, 60.0, 2, 3),
        (5, 60.0, 0, 5),
        (50, 60.0, 4, 6),  # no more than the window
        (50, 60.0, 30, 0),
    ],
)
def test_only_hints_that_were_lost_are_repeated(
    announced: int, oldest_s: float | None, in_redis: int, expected: int
) -> None:
    found = depth(announced=announced, oldest_s=oldest_s)
    assert num_to_repeat(found, in_redis, window=10, reannounce_s=10.0) == expected


@pytest.mark.parametrize(("slots", "under_way", "expected"), [(1, 0, 1), (8, 4, 2), (8, 9, 0), (25, 4, 14)])
def test_the_batch_class_never_has_all_places(slots: int, under_way: int, expected: int) -> None:
    found = QueueDepth(QUEUE, 50, 0, None, batch_under_way=under_way, num_slots=slots)
    assert num_of_batch(found, share=0.75) == expected
    assert num_of_batch(found, share=1.0) is None, "only batches run: they fill the window"


def test_a_window_is_topped_up_in_order_and_no_further(
    dispatcher: Dispatcher, submit: Submit, redis_client: redis.Redis
) -> None:
    late = submit(20, service_class=ServiceClass.BATCH)
    first = submit(3, service_class=ServiceClass.INTERACTIVE)
    dispatcher.ready_window.top_up()
    assert hinted(redis_client) == [*first, *late[:7]]
    dispatcher.ready_window.top_up()
    assert len(hinted(redis_client)) == 10
    redis_client.rpop(QUEUE, 4)
    dispatcher.ready_window.top_up()
    assert hinted(redis_client)[-4:] == late[7:11]


def test_a_hint_names_the_model_version_and_holds_no_prompt(
    dispatcher: Dispatcher, submit: Submit, redis_client: redis.Redis
) -> None:
    submit(1)
    dispatcher.ready_window.top_up()
    (raw,) = redis_client.lrange(QUEUE, 0, -1)
    assert json.loads(raw)["headers"]["shadow"] == "generate:tiny@1"
    assert b"never shown" not in raw


def test_queues_do_not_take_each_others_window(
    dispatcher: Dispatcher, submit: Submit, redis_client: redis.Redis
) -> None:
    submit(30)
    submit(30, queue="other@2", model="other", model_version=2)
    dispatcher.ready_window.top_up()
    assert len(hinted(redis_client)) == len(hinted(redis_client, "other@2")) == 10


def test_a_window_is_shared_between_tenants_over_many_top_ups(
    db: Database, dispatcher: Dispatcher, submit: Submit, redis_client: redis.Redis
) -> None:
    crowd = submit(60, cost_tokens=1000)
    newcomer = submit(10, cost_tokens=1000, tenant_id=create_tenant(db, new_id("tenant")))
    taken = []
    for _ in range(8):
        dispatcher.ready_window.top_up()
        # Five are claimed, which makes room for five.
        taken += [json.loads(raw)["headers"]["id"] for raw in redis_client.rpop(QUEUE, 5)]
    assert len(taken) == 40
    assert set(newcomer) <= set(taken), "they take turns, two jobs each"
    assert set(taken) <= {*crowd, *newcomer}


def test_a_job_that_waited_too_long_is_announced_before_better_classes(
    db: Database, make: Make, submit: Submit, redis_client: redis.Redis
) -> None:
    dispatcher = make(ready_window=10, ageing_s=30)
    late = submit(2, service_class=ServiceClass.BATCH)
    submit(30, service_class=ServiceClass.INTERACTIVE)
    with db.begin() as connection:
        connection.execute(text("UPDATE jobs SET created_at = created_at - interval '40 s' WHERE class_rank = 2"))
    dispatcher.ready_window.top_up()
    assert late[0] in hinted(redis_client)
    assert late[1] not in hinted(redis_client)


def test_a_paused_queue_is_not_topped_up_and_its_lost_hints_are_not_repeated(
    db: Database, make: Make, submit: Submit, tenant: str, redis_client: redis.Redis
) -> None:
    dispatcher = make(reannounce_s=0.05)
    lost = submit(2)
    dispatcher.ready_window.top_up()
    redis_client.delete(QUEUE)
    queues.pause(db, tenant, QUEUE, actor="tests")
    waiting = submit(3)
    other = submit(1, queue="other@2", model="other", model_version=2)
    time.sleep(0.1)
    dispatcher.ready_window.top_up()
    assert (hinted(redis_client), hinted(redis_client, "other@2")) == ([], other)
    queues.resume(db, tenant, QUEUE, actor="tests")
    dispatcher.ready_window.top_up()
    assert hinted(redis_client) == [*lost, *waiting]


def test_a_running_dispatcher_counts_and_measures(
    db: Database, running: Dispatcher, submit: Submit, redis_client: redis.Redis
) -> None:
    jobs = submit(200)
    wait_for(lambda: totals(db) == 200, "counted")
    started = 0

    def start_some() -> Rate | None:
        """Start another job; return the rate once it is about the true one, which a pause of either side changes."""
        nonlocal started
        started += len(claim(db, "worker", QUEUE, jobs[started : started + 1], 60))
        time.sleep(0.1)
        rate = read_backlog(db).rates.get(QUEUE)
        truly = started / (time.monotonic() - began)
        return rate if rate and truly / 3 < rate.jobs_per_s < truly * 3 else None

    began = time.monotonic()
    rate = wait_for(start_some, "measured")
    assert rate is not None
    assert rate.tokens_per_s == pytest.approx(10 * rate.jobs_per_s)
    wait_for(lambda: totals(db) == 200 - started, "counted")


def totals(db: Database) -> int:
    with db.begin() as connection:
        return int(connection.execute(text("SELECT COALESCE(sum(jobs), 0) FROM queue_totals")).scalar_one())


def test_a_lost_hint_is_found_and_announced_again_once(make: Make, submit: Submit, redis_client: redis.Redis) -> None:
    patient, dispatcher = make(reannounce_s=3600), make(reannounce_s=0.05)
    jobs = submit(3)
    patient.ready_window.top_up()
    redis_client.delete(QUEUE)
    patient.ready_window.top_up()
    assert hinted(redis_client) == []  # too early to decide
    wait_for(lambda: dispatcher.ready_window.top_up() or hinted(redis_client), "announced again")
    assert hinted(redis_client) == jobs
    time.sleep(0.1)
    dispatcher.ready_window.top_up()
    assert hinted(redis_client) == jobs  # they all stay, however long no worker takes them


def test_hints_that_are_announced_again_take_their_room_in_the_window(
    make: Make, submit: Submit, redis_client: redis.Redis
) -> None:
    dispatcher = make(ready_window=10, reannounce_s=0.05)
    lost = submit(6)
    dispatcher.ready_window.top_up()
    redis_client.delete(QUEUE)
    waiting = submit(20)
    time.sleep(0.1)
    dispatcher.ready_window.top_up()
    assert set(hinted(redis_client)) == {*lost, *waiting[:4]}


def test_a_wiped_redis_is_filled_again_at_once(
    dispatcher: Dispatcher, submit: Submit, redis_client: redis.Redis
) -> None:
    dispatcher.ready_window.notice_wipe()
    jobs = submit(5)
    dispatcher.ready_window.top_up()
    redis_client.flushall()
    dispatcher.ready_window.notice_wipe()
    dispatcher.ready_window.top_up()
    assert hinted(redis_client) == jobs


def test_a_wipe_that_could_not_be_dealt_with_is_noticed_again(make: Make, redis_client: redis.Redis) -> None:
    without_postgres = make(database_url="postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(Unavailable, match="Postgres"):
        without_postgres.ready_window.notice_wipe()
    assert not redis_client.exists(GENERATION_KEY)


def test_jobs_of_a_dead_worker_are_queued_or_failed(
    db: Database, make: Make, submit: Submit, read: Read, redis_client: redis.Redis
) -> None:
    dispatcher = make(ready_window=10, lease_s=60)
    again, spent = submit(1), submit(1, max_attempts=1)
    claim(db, "dead", QUEUE, again + spent, lease_s=0.01)
    time.sleep(0.05)
    dispatcher.sweeper.sweep_leases()
    dispatcher.ready_window.top_up()
    assert read(again[0]).state is JobState.QUEUED
    assert hinted(redis_client) == []  # its next worker must run it alone, and takes it without a hint
    assert claim_candidates(db, QUEUE, 5, suspects=True) == again
    failed = read(spent[0])
    assert failed.state is JobState.FAILED
    assert failed.error is not None
    assert failed.error["code"] == "max_attempts_exceeded"


def test_after_a_silence_of_postgres_lost_leases_are_nobodys_fault() -> None:
    hearing = OutageGrace(lease_s=10, sweep_s=2, now=100)
    for now in (101, 103, 109):
        hearing.answered(now)
        assert hearing.blames(now)
    hearing.answered(117)  # eight seconds: more than a worker has left when it renews
    assert not hearing.blames(117)
    hearing.answered(119)
    assert not hearing.blames(130.9)  # a lease that was renewed at the last moment, and two sweeps
    assert hearing.blames(131)


def test_jobs_that_postgres_kept_from_renewing_run_on_in_company(
    db: Database, make: Make, submit: Submit, redis_client: redis.Redis
) -> None:
    dispatcher = make(lease_s=0.1, sweep_s=0.05)
    (job_id,) = submit(1)
    claim(db, "alive", QUEUE, [job_id], lease_s=0.01)
    time.sleep(0.2)  # as long without a look at Postgres as if it had not answered
    dispatcher.sweeper.sweep_leases()
    dispatcher.ready_window.top_up()
    assert hinted(redis_client) == [job_id]


@contextmanager
def full_disk(db: Database) -> Iterator[None]:
    """Let Postgres answer questions, and change no job."""
    with db.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'No space left on device' USING ERRCODE = 'disk_full'; END $$"
            )
        )
        connection.execute(text("CREATE TRIGGER full_disk BEFORE UPDATE ON jobs EXECUTE FUNCTION refuse()"))
    try:
        yield
    finally:
        with db.begin() as connection:
            connection.execute(text("DROP FUNCTION refuse CASCADE"))


def test_nor_are_they_after_its_disk_was_full(
    db: Database, make: Make, submit: Submit, redis_client: redis.Redis
) -> None:
    dispatcher = make(lease_s=3600)
    (job_id,) = submit(1)
    claim(db, "alive", QUEUE, [job_id], lease_s=0.0)
    with full_disk(db), pytest.raises(Unavailable):
        dispatcher.sweeper.sweep_leases()
    dispatcher.sweeper.sweep_leases()
    dispatcher.ready_window.top_up()
    assert hinted(redis_client) == [job_id]


def test_a_deadline_is_kept_queued_or_running(db: Database, make: Make, submit: Submit, read: Read) -> None:
    dispatcher = make(lease_s=0.1)
    queued, running, early = submit(1, deadline_s=0.05), submit(1, deadline_s=0.05), submit(1)
    claim(db, "hung", QUEUE, running, lease_s=60)
    wait_for(lambda: dispatcher.sweeper.expire_deadlines() or read(queued[0]).state is JobState.EXPIRED, "expired")
    wait_for(lambda: dispatcher.sweeper.expire_deadlines() or read(running[0]).state is JobState.EXPIRED, "expired")
    assert read(early[0]).state is JobState.QUEUED


async def test_an_open_stream_is_told_at_once_that_its_job_expired(
    settings: Settings,
    dispatcher: Dispatcher,
    submit: Submit,
    read: Read,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nothing else wakes a follower.
    monkeypatch.setattr("headrace.store.streams.hub.TICK_S", 3600.0)
    (job_id,) = submit(1, deadline_s=0.01)
    hub = Hub(settings.redis_url)
    await hub.start()
    try:
        async with asyncio.timeout(30), aclosing(hub.follow(job_id)) as stream:
            waiting = asyncio.ensure_future(anext(stream))
            await until(lambda: stream_key(job_id).encode() in redis_client.pubsub_channels(), "it listens")
            await until(
                lambda: dispatcher.sweeper.expire_deadlines() or read(job_id).state is JobState.EXPIRED, "it expires"
            )
            assert await waiting is None
    finally:
        await hub.stop()


def test_what_has_been_kept_long_enough_is_forgotten_and_then_its_row(
    db: Database,
    settings: Settings,
    dispatcher: Dispatcher,
    submit: Submit,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended, queued = submit(8, deadline_s=0.01), submit(1)

    def look(column: str) -> dict[str, Any]:
        with db.begin() as connection:
            return {row.id: row[1] for row in connection.execute(text(f"SELECT id, {column} FROM jobs"))}

    def prompts() -> dict[str, Any]:
        return look("(payload #>> '{}')::jsonb #>> '{input,prompt}'")

    def end_all() -> bool:
        dispatcher.sweeper.expire_deadlines()
        return sum(at is not None for at in look("completed_at").values()) == len(ended)

    wait_for(end_all, "expired")
    redis_client.xadd(stream_key(ended[0]), {"k": "d", "t": "never shown", "i": ""}, id="1-1")
    as_dispatcher = Database(as_worker(settings).database_url, pool_size=1, application_name="tests")
    own = settings.model_copy(update={"result_ttl_s": 100, "record_ttl_s": 200})
    forget = partial(stream_log.forget, redis_client)
    context = DispatcherContext(as_dispatcher, own, DispatcherMetrics(), OFF, lambda _ids: None, forget)
    # More than a piece of each kind: the duties are repeated until nothing is left.
    for module in (row_duties, retention_duties):
        monkeypatch.setattr(module, "ROWS", 3)

    def forget_all() -> None:
        for (duty,) in (*retention_duties.PART.build(context).duties, *row_duties.row_duties(as_dispatcher, own)):
            while duty.run():
                pass

    forget_all()
    assert set(prompts().values()) == {"never shown"}
    for age_s, kept in ((110, dict.fromkeys(ended)), (100, {})):
        with db.begin() as connection:
            connection.execute(text(f"UPDATE jobs SET completed_at = completed_at - interval '{age_s} s'"))
        forget_all()
        assert prompts() == {**kept, queued[0]: "never shown"}
    assert not redis_client.exists(stream_key(ended[0]))
    as_dispatcher.close()


def test_what_is_due_in_masses_does_not_wait_for_the_next_sweep(
    make: Make, submit: Submit, db: Database, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.workers.dispatcher.job_sweeper.SWEEP_ROWS", 5)
    overdue, lost = submit(23, deadline_s=0.01), submit(23)
    claim(db, "dead", QUEUE, lost, lease_s=0.0)
    # Of five sweeps each kind of job would need four minutes. One sweep more is for rows that were being announced.
    dispatcher = make(sweep_s=60)
    thread = threading.Thread(target=dispatcher.run)
    thread.start()
    try:
        wait_for(lambda: {read(job_id).state for job_id in overdue} == {JobState.EXPIRED}, "expired")
        wait_for(lambda: {read(job_id).state for job_id in lost} == {JobState.QUEUED}, "taken back")
    finally:
        dispatcher.stop()
        thread.join(WAIT_S)


def test_neither_a_duty_that_waits_for_a_lock_nor_one_that_raises_holds_up_others(
    db: Database,
    make: Make,
    submit: Submit,
    read: Read,
    redis_client: redis.Redis,
    tenant: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The steps of an overdue flow are locked, as by a transaction whose client was stopped."""

    def fail(*_: object) -> int:
        raise RuntimeError("a defect")

    monkeypatch.setattr("headrace.store.jobs.sweeps.purge", fail)
    dispatcher = make(sweep_s=0.2)
    (flow,) = submit(1, task="flow", queue="flows", deadline_s=0.01)
    (step,) = submit(1)
    with db.begin() as connection:
        connection.execute(text("UPDATE jobs SET parent_id = :flow WHERE id = :step"), {"flow": flow, "step": step})
    thread = threading.Thread(target=dispatcher.run)

    def others_run_beside() -> bool:
        """Whether a lease was swept and a job announced while the duty waited."""
        waits_since = waiting_since(db)
        (lost,) = submit(1)
        claim(db, "dead", QUEUE, [lost], lease_s=0.0)
        wait_for(lambda: read(lost).state is JobState.QUEUED, "its lease was swept")
        (waiting,) = submit(1)
        wait_for(lambda: waiting in hinted(redis_client), "announced")
        return waits_since is not None and waiting_since(db) == waits_since

    with db.connection() as locking, capture_logs() as logs:
        locking.execute(text("SELECT FROM jobs WHERE id = :id FOR UPDATE"), {"id": step})
        thread.start()
        try:
            wait_for(others_run_beside, "the other duties do not wait")
            gave_up = {"purge_jobs", "expire_deadlines"}
            wait_for(lambda: gave_up <= {log["duty"] for log in logs if log["event"] == "duty_failed"}, "both failed")
            page = dispatcher.metrics.render().decode()
            for name in gave_up:
                assert f'headrace_duty_failures_total{{duty="{name}"}} 0.0' not in page
            (waiting,) = submit(1)
            wait_for(lambda: waiting in hinted(redis_client), "announced")
            assert "dispatcher.stopped_leading" not in [log["event"] for log in logs]
        finally:
            locking.rollback()
            dispatcher.stop()
            thread.join(WAIT_S)


_WAITS = text("""
SELECT min(query_start) FROM pg_stat_activity
WHERE application_name = 'headrace-dispatcher' AND wait_event_type = 'Lock'
""")


def waiting_since(db: Database) -> object:
    with db.autocommit() as connection:
        return connection.execute(_WAITS).scalar_one()


def test_a_running_dispatcher_survives_wipes_and_cut_connections(
    db: Database, running: Dispatcher, submit: Submit, redis_client: redis.Redis
) -> None:
    jobs = submit(4)
    wait_for(lambda: hinted(redis_client) == jobs, "announced")
    redis_client.flushall()
    wait_for(lambda: hinted(redis_client) == jobs, "announced after the wipe")
    redis_client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with db.begin() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'headrace-dispatcher'"
            )
        )
    jobs += submit(2)
    wait_for(lambda: set(hinted(redis_client)) == set(jobs), "announced after both were cut")


def test_a_full_redis_holds_up_the_hints_and_nothing_else(
    db: Database, running: Dispatcher, submit: Submit, read: Read, redis_client: redis.Redis
) -> None:
    wait_for(lambda: redis_client.exists(GENERATION_KEY), "the dispatcher leads")
    redis_client.config_set("maxmemory", "1")
    try:
        (waiting,) = submit(1)
        (overdue,) = submit(1, deadline_s=0.05)
        wait_for(lambda: read(overdue).state is JobState.EXPIRED, "expired")
        assert hinted(redis_client) == []
    finally:
        redis_client.config_set("maxmemory", "0")
    wait_for(lambda: hinted(redis_client) == [waiting], "announced when there is room")


def test_one_leads_and_the_other_takes_over(
    make: Make,
    db: Database,
    running: Dispatcher,
    submit: Submit,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock, standing_by = sweeps.leader_lock, threading.Event()

    @contextmanager
    def watched(database: Database) -> Iterator[Leadership | None]:
        with lock(database) as lead:
            yield lead
        if not lead:
            standing_by.set()  # it has done all that it does when it may not lead

    def is_led() -> bool:
        with lock(db) as free:
            return not free

    submit(1)
    wait_for(lambda: hinted(redis_client), "the first leads, and has said so")
    monkeypatch.setattr("headrace.store.jobs.sweeps.leader_lock", watched)
    standby = make()
    thread = threading.Thread(target=standby.run)
    with capture_logs() as logs:
        thread.start()
        try:
            assert standing_by.wait(WAIT_S)
            assert [log["event"] for log in logs if log["event"] == "dispatcher.leading"] == []
            running.stop()
            submit(1)
            wait_for(lambda: len(hinted(redis_client)) == 2, "the standby announces")
            wait_for(is_led, "the standby leads")
        finally:
            standby.stop()
            thread.join(WAIT_S)
    wait_for(lambda: not is_led(), "the lock is free again")


_END_LEADERS_SESSION = text("""
SELECT pg_terminate_backend(pid, 5000) FROM pg_locks
WHERE locktype = 'advisory' AND (CAST(classid AS bigint) << 32) | CAST(objid AS bigint) = :key
""")


def test_a_leader_whose_lock_is_gone_stops_leading(
    running: Dispatcher, db: Database, submit: Submit, redis_client: redis.Redis
) -> None:
    """Also if nothing else of it needs that connection: otherwise two lead from then on."""
    submit(1)
    wait_for(lambda: hinted(redis_client), "it leads")
    with capture_logs() as logs:
        with db.autocommit() as connection:
            assert connection.execute(_END_LEADERS_SESSION, {"key": sweeps.LEADER_LOCK}).scalars().all() == [True]
        wait_for(lambda: "dispatcher.stopped_leading" in [log["event"] for log in logs], "it stopped leading")
        wait_for(lambda: "dispatcher.leading" in [log["event"] for log in logs], "it leads again")


@pytest.fixture
def start(settings: Settings, start_process: StartProcess) -> Callable[..., Process]:
    """Start dispatchers; keywords are variables of the environment, one without a value is left out."""

    def start(**changes: str) -> Process:
        environment = {
            "DATABASE_URL": as_worker(settings).database_url,
            "REDIS_URL": settings.redis_url,
            "HEADRACE_SWEEP_S": "0.2",
        }
        given = {name: value for name, value in {**environment, **changes}.items() if value}
        return start_process(python("-m", "headrace.workers.dispatcher"), given)

    return start


@pytest.mark.uses("webhooks")
@pytest.mark.parametrize("number", [signal.SIGTERM, *full(signal.SIGINT)])
def test_the_process_calls_webhooks_and_ends_when_told(
    start: Callable[..., Process], submit: Submit, read: Read, number: signal.Signals
) -> None:
    receiver = Receiver()
    port = free_port()
    process = start(
        HEADRACE_WEBHOOK_ALLOW_HTTP="true",
        HEADRACE_WEBHOOK_ALLOW_NETWORKS="127.0.0.0/8",
        HEADRACE_DISPATCHER_PORT=str(port),
    )
    try:
        submit(1, deadline_s=0.01, webhook={"url": receiver.url()})
        (call,) = receiver.wait_calls(1)
        assert json.loads(call.body)["type"] == "job.expired"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60) as response:
            assert json.loads(response.read()) == {"status": "ready", "loop": "ok"}
            assert response.headers["Server"] == "headrace"
        # One that is being sent does not hold up the end either.
        submit(1, deadline_s=0.01, webhook={"url": receiver.url("/slow")})
        receiver.wait_calls(1, "/slow")
        process.signal(number)
        # Well before the receiver would be given up.
        assert process.wait_exit() == 0
    finally:
        receiver.close()
    names = [event["event"] for event in process.events()]
    assert names[0] == "dispatcher.leading"
    assert names[-1] == "dispatcher.stopped_leading"
    assert "never shown" not in process.log()


def test_a_loop_that_no_longer_turns_is_not_ready() -> None:
    now = 0.0
    pulse = LoopHeartbeat(60, lambda: now)
    now = 60.0
    assert readiness({"loop": pulse.check}) == (200, {"status": "ready", "loop": "ok"})
    now = 61.0
    status, said = readiness({"loop": pulse.check})
    assert (status, said["status"], " 61 s" in str(said["loop"])) == (503, "not ready", True)
    pulse.beat()
    assert pulse.check() == "ok"


@pytest.mark.full
def test_the_process_waits_for_services_that_are_away_and_says_so_in_lines(start: Callable[..., Process]) -> None:
    process = start(DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    wait_for(lambda: process.log().count("\n") >= 2, "tried twice")
    assert process.exit_code is None
    assert {event["event"] for event in process.events()} == {"dispatcher.not_leading"}
    assert all("Postgres" in event["error"] for event in process.events())


@pytest.fixture
def empty_database_url(settings: Settings) -> Iterator[str]:
    """A second database on the same server, without a table."""
    engine = create_engine(settings.database_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE test_empty"))
        yield make_url(settings.database_url).set(database="test_empty").render_as_string(hide_password=False)
        connection.execute(text("DROP DATABASE test_empty WITH (FORCE)"))
    engine.dispose()


@pytest.mark.full
def test_an_empty_database_is_told_and_waited_for(start: Callable[..., Process], empty_database_url: str) -> None:
    process = start(DATABASE_URL=empty_database_url)
    (first, *_) = wait_for(process.events, "it logged an event")
    assert "headrace migrate" in first["error"]
    process.signal(signal.SIGTERM)
    assert process.wait_exit() == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *of("webhooks", ({"HEADRACE_WEBHOOK_ALLOW_NETWORKS": "ten"}, "HEADRACE_WEBHOOK_ALLOW_NETWORKS")),
        *full(
            ({"DATABASE_URL": ""}, "DATABASE_URL"),
            ({"REDIS_URL": ""}, "REDIS_URL"),
            ({"HEADRACE_SWEEP_S": "soon"}, "HEADRACE_SWEEP_S"),
            ({"HEADRACE_NO_SUCH": "1"}, "HEADRACE_NO_SUCH"),
            ({"HEADRACE_LOG_LEVEL": "LOUD"}, "LOUD"),
        ),
    ],
)
def test_a_bad_setting_ends_the_process_in_one_line(
    start: Callable[..., Process], changes: dict[str, str], reason: str
) -> None:
    process = start(**changes)
    assert process.wait_exit() == 2
    assert reason in process.log()
    assert process.log().startswith("headrace dispatcher: ")
    assert process.log().count("\n") == 1
