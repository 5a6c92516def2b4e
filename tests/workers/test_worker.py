"""A real worker process on a real Postgres and Redis, through everything that may happen to it."""

import pickle  # noqa: TID251 - pickled messages must be refused
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from kombu.entity import Exchange
from kombu.messaging import Producer

from headrace.store.jobs import jobs
from headrace.store.redis.celery_queue import TASK
from headrace.store.schema.job_states import JobState
from headrace.store.streams import stream_log
from tests.cases import full
from tests.processes import WAIT_S, free_port, wait_for

from .conftest import Bench, Duties, StartWorker

SLOW = {"max_tokens": 1900}
"""A job of 38 s at a step of 20 ms; eight of them fit into the KV pool."""


@pytest.mark.full
def test_two_hundred_jobs_end_once_each(bench: Bench, duties: Duties, start_worker: StartWorker) -> None:
    ids = bench.submit(200)
    start_worker()
    ended = bench.wait_ended(ids)
    assert {job.state for job in ended} == {JobState.SUCCEEDED}
    assert {job.attempt for job in ended} == {1}
    (row,) = bench.query("SELECT count(*) AS terminal FROM job_terminal")
    assert row.terminal == 200
    one = ended[0]
    assert one.output is not None
    assert one.output["finish_reason"] == "length"
    assert one.usage is not None
    assert one.usage["output_tokens"] == 16
    assert one.usage["first_token_ms"] >= one.usage["queue_ms"] > 0
    stored = jobs.stored_deltas(bench.db, bench.tenant_id, one.id)
    assert stored is not None
    assert "".join(stored.deltas) == one.output["text"] != ""


@pytest.mark.full
def test_frames_and_the_end_reach_redis(bench: Bench, redis_client: redis.Redis, start_worker: StartWorker) -> None:
    start_worker()
    (job_id,) = bench.submit()
    (job,) = bench.wait_ended([job_id])
    key = stream_log.stream_key(job_id)
    wait_for(lambda: redis_client.xrevrange(key, count=1)[0][1][b"k"] == b"e", "the end frame is in the log")
    entries = redis_client.xrange(key)
    assert [entry_id.decode() for entry_id, _ in entries] == [f"1-{n}" for n in range(1, len(entries) + 1)]
    assert job.output is not None
    assert b"".join(fields[b"t"] for _, fields in entries).decode() == job.output["text"]


@pytest.mark.parametrize("version", ["fake", *full("fake-encoder")], indirect=True)
def test_kill_9_in_the_middle_and_a_restart(bench: Bench, duties: Duties, start_worker: StartWorker) -> None:
    encodes = bench.version.task == "embed"
    # Long enough for an encoder that each is a pass of its own; generating takes a step for each token anyway. The
    # passes of all take far longer than it takes to see that some are done.
    worker = start_worker(fake_step_ms=100 if encodes else 10)
    ids = bench.submit(200, **{"prompt": "x" * 3000} if encodes else {})
    wait_for(lambda: bench.states(ids)[JobState.SUCCEEDED] >= 20, "some jobs are done")
    worker.signal(signal.SIGKILL)
    worker.wait_exit()
    bench.end_leases()
    start_worker()
    ended = bench.wait_ended(ids)
    assert {job.state for job in ended} == {JobState.SUCCEEDED}
    assert {job.attempt for job in ended} == {1, 2}, "the killed worker's jobs were charged an attempt"
    assert duties.requeued > 0


def test_sigterm_hands_back_in_time_without_charging(bench: Bench, start_worker: StartWorker) -> None:
    worker = start_worker(fake_step_ms=20, drain_s=1)
    ids = bench.submit(8, sampling=SLOW)
    wait_for(lambda: bench.states(ids)[JobState.RUNNING] == 8, "all run")
    began = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.wait_exit() == 0
    assert time.monotonic() - began >= 0.75, "the drain of a second less what the hand back takes"
    rows = bench.query("SELECT state, attempt, owner, announced_at FROM jobs")
    assert {tuple(row) for row in rows} == {("queued", 0, None, None)}, "free, unannounced, not charged"
    assert worker.events("handed_back")[0]["num_jobs"] == 8


@pytest.mark.full
def test_jobs_that_end_within_the_drain_are_not_handed_back(bench: Bench, start_worker: StartWorker) -> None:
    # It does not wait for the drain's end when nothing runs: that would be after the time that the test waits.
    worker = start_worker(fake_step_ms=20, drain_s=600)
    ids = bench.submit(4, sampling={"max_tokens": 300})
    wait_for(lambda: bench.states(ids)[JobState.RUNNING] == 4, "all run")
    worker.signal(signal.SIGTERM)
    assert worker.wait_exit() == 0
    assert bench.states(ids) == {JobState.SUCCEEDED: 4}


@pytest.mark.full
def test_a_second_sigterm_hands_back_at_once(bench: Bench, start_worker: StartWorker) -> None:
    worker = start_worker(fake_step_ms=20, drain_s=600)
    ids = bench.submit(2, sampling=SLOW)
    wait_for(lambda: bench.states(ids)[JobState.RUNNING] == 2, "both run")
    worker.signal(signal.SIGTERM)
    worker.wait_event("drain_began")
    worker.signal(signal.SIGTERM)
    assert worker.wait_exit() == 0
    assert bench.states(ids) == {JobState.QUEUED: 2}


@pytest.mark.parametrize("fast", [True, False], ids=["redis", "lease renewal"])
@pytest.mark.full
def test_a_cancelled_job_stops_and_keeps_what_it_has(
    bench: Bench, redis_client: redis.Redis, start_worker: StartWorker, fast: bool
) -> None:
    start_worker(fake_step_ms=20, lease_s=600 if fast else 4)
    (job_id,) = bench.submit(sampling=SLOW)
    wait_for(lambda: redis_client.exists(stream_log.stream_key(job_id)), "the first frame")
    jobs.request_cancel(bench.db, bench.tenant_id, job_id)
    if fast:
        stream_log.publish_cancel(redis_client, job_id)
    (job,) = bench.wait_ended([job_id])
    assert job.state is JobState.CANCELLED
    assert job.output is not None
    assert job.output["finish_reason"] == "cancelled"
    assert job.usage is not None
    assert 0 < job.usage["output_tokens"] < 1900


@pytest.mark.full
def test_a_deadline_ends_a_running_job(bench: Bench, start_worker: StartWorker) -> None:
    start_worker(fake_step_ms=20)
    (job_id,) = bench.submit(sampling=SLOW, deadline_s=6.0)
    (job,) = bench.wait_ended([job_id])
    assert job.state is JobState.EXPIRED
    assert job.error is not None
    assert job.error["code"] == "deadline_exceeded"
    assert job.output is not None
    assert job.output["text"]
    assert job.completed_at is not None
    assert job.deadline_at is not None
    assert job.completed_at >= job.deadline_at
    assert job.usage is not None
    assert 0 < job.usage["output_tokens"] < 1900


@pytest.mark.full
def test_a_revoke_through_celery_cancels_a_running_job(bench: Bench, start_worker: StartWorker) -> None:
    start_worker(fake_step_ms=20, celery_control="full")
    (job_id,) = bench.submit(sampling=SLOW)
    bench.wait_state(job_id, JobState.RUNNING)
    bench.app.control.revoke(job_id, terminate=True)
    (job,) = bench.wait_ended([job_id])
    assert job.state is JobState.CANCELLED
    assert job.output is not None


@pytest.mark.full
def test_a_revoke_before_the_start_ends_the_job_too(bench: Bench, start_worker: StartWorker) -> None:
    worker = start_worker(celery_control="full")
    new = bench.new_job()
    jobs.accept(bench.db, [new])
    bench.app.control.revoke(new.id)
    wait_for(lambda: new.id in _revoked(bench), "the worker knows of the revoke")
    bench.publish_hints([new.id])
    (job,) = bench.wait_ended([new.id])
    assert job.state is JobState.CANCELLED
    assert worker.exit_code is None


def _revoked(bench: Bench) -> list[str]:
    try:
        answers = bench.app.control.inspect(timeout=30, limit=1).revoked() or {}
    except redis.ConnectionError:
        # A connection of the app's pool from before an earlier test restarted Redis; the pool replaces it.
        return []
    return [job_id for ids in answers.values() for job_id in ids]


@pytest.mark.full
def test_poison_fails_alone(bench: Bench, start_worker: StartWorker) -> None:
    worker = start_worker()
    secret = "the heron waits under the third arch"
    unreadable = bench.new_job(payload={"input": {"prompt": secret}, "sampling": {"temperature": "warm"}, "odd": 1})
    too_long = bench.new_job(sampling={"max_tokens": 9000})
    unfit = bench.new_job(sampling={"max_tokens": 8191}, prompt=secret)
    jobs.accept(bench.db, [unreadable, too_long, unfit])
    innocents = bench.submit(8)
    bench.publish_hints([unreadable.id, too_long.id, unfit.id])
    ended = bench.wait_ended([*innocents, unreadable.id, too_long.id, unfit.id])
    by_id = {job.id: job for job in ended}
    assert {by_id[job_id].state for job_id in innocents} == {JobState.SUCCEEDED}
    codes = [(by_id[job.id].error or {})["code"] for job in (unreadable, too_long, unfit)]
    assert codes == ["invalid_payload", "context_length_exceeded", "context_length_exceeded"]
    assert secret not in str(by_id[unreadable.id].error)
    assert secret not in worker.log()


@pytest.mark.full
def test_duplicate_and_stale_hints_are_harmless(bench: Bench, start_worker: StartWorker) -> None:
    start_worker()
    ids = bench.submit(20)
    for _ in range(5):
        bench.publish_hints(ids)
    bench.publish_hints(["job_that_never_was"])
    ended = bench.wait_ended(ids)
    bench.publish_hints(ids)
    wait_for(lambda: bench.publisher.depth(bench.queue) == 0, "every hint was taken")
    assert {(job.state, job.attempt) for job in ended} == {(JobState.SUCCEEDED, 1)}
    (row,) = bench.query("SELECT count(*) AS runs FROM attempts")
    assert row.runs == 20


@pytest.mark.full
def test_a_worker_takes_what_its_engine_holds_and_no_more(bench: Bench, start_worker: StartWorker) -> None:
    """256 KV blocks at 4 a job: 64 are claimed, one more at most waits in the broker's connection."""
    start_worker(fake_step_ms=150, kv_pool_tokens=256 * 16, kv_block_tokens=16, max_slots=500)
    ids = bench.submit(100, prompt="p" * 8, sampling={"max_tokens": 56})
    wait_for(lambda: bench.states(ids)[JobState.RUNNING] >= 64, "the engine is full")
    assert bench.states(ids)[JobState.RUNNING] == 64
    assert bench.publisher.depth(bench.queue) in {35, 36}
    (stats,) = (bench.app.control.inspect(timeout=30, limit=1).stats() or {}).values()
    assert stats["pool"]["requests running"] + stats["pool"]["requests waiting"] <= 64
    bench.wait_ended(ids)
    (stats,) = (bench.app.control.inspect(timeout=30, limit=1).stats() or {}).values()
    assert (stats["pool"]["batch peak"], stats["pool"]["preempted"]) == (64, 0)


@pytest.mark.full
def test_a_flushed_redis_loses_no_job(
    bench: Bench, duties: Duties, redis_client: redis.Redis, start_worker: StartWorker
) -> None:
    start_worker(fake_step_ms=5)
    ids = bench.submit(150)
    for _ in range(3):
        time.sleep(0.2)  # spread over the run, whatever it is doing
        redis_client.flushall()
    ended = bench.wait_ended(ids)
    assert {job.state for job in ended} == {JobState.SUCCEEDED}


@pytest.mark.full
def test_a_paused_worker_cannot_overwrite_the_newer_attempt(
    bench: Bench, duties: Duties, start_worker: StartWorker
) -> None:
    paused = start_worker("--name", "paused", fake_step_ms=100, lease_s=6)
    (job_id,) = bench.submit(sampling={"max_tokens": 100})
    bench.wait_state(job_id, JobState.RUNNING)
    paused.signal(signal.SIGSTOP)
    bench.end_leases()
    start_worker("--name", "other")
    (job,) = bench.wait_ended([job_id])
    assert (job.state, job.epoch, job.attempt) == (JobState.SUCCEEDED, 3, 2), "lost, alone for a while, then in company"
    paused.signal(signal.SIGCONT)
    wait_for(lambda: paused.events("lease_lost") or paused.events("stale_finish_refused"), "the paused worker noticed")
    assert bench.job(job_id) == job


@pytest.mark.full
def test_flower_sees_the_engine_and_no_prompt(bench: Bench, start_worker: StartWorker) -> None:
    start_worker("--name", "w1")
    secret = "nobody shall read this prompt"
    received: list[dict[str, object]] = []
    with bench.app.connection_for_read() as connection:
        receiver = bench.app.events.Receiver(connection, handlers={"*": received.append})
        capture = receiver.itercapture(limit=None, timeout=60, wakeup=False)
        next(capture)
        told = {"reply": True, "timeout": 1}
        wait_for(lambda: bench.app.control.broadcast("enable_events", **told), "the worker was told, as by Flower")
        (job_id,) = bench.submit(prompt=secret)
        deadline = time.monotonic() + WAIT_S
        while not any(event["type"] == "task-succeeded" for event in received):
            assert time.monotonic() < deadline, [event["type"] for event in received]
            next(capture)
    bench.wait_ended([job_id])
    (task,) = (event for event in received if event["type"] == "task-received")
    assert (task["name"], task["uuid"], task["args"]) == ("generate:fake@1", job_id, job_id)
    (stats,) = (bench.app.control.inspect(timeout=30, limit=1).stats() or {}).values()
    pool = stats["pool"]
    assert pool["model version"] == "fake@1"
    assert pool["engine steps"] > 0
    assert pool["KV blocks free"] == pool["KV blocks total"] == 1024
    assert pool["output tokens"] == 16
    assert pool["implementation"] == "headrace.workers.celery.thread_pool:EnginePool"
    assert all(isinstance(value, str | int | float) for value in pool.values())
    assert secret not in str(received) + str(stats)


class Trap:
    """Pickled, a command that makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self._path,)


def test_what_comes_through_redis_neither_ends_a_worker_nor_runs_code(
    bench: Bench, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker("--name", "w1")
    control, told = bench.app.control, {"reply": True, "timeout": WAIT_S, "limit": 1}
    assert control.broadcast("ping", **told)
    for command in ("shutdown", "pool_shrink", "cancel_consumer", "add_consumer", "rate_limit", "revoke", "election"):
        (answer,) = control.broadcast(command, arguments={"queue": bench.queue, "n": 99}, **told)
        assert "refused" in str(answer), command
    assert not control.broadcast("shutdown")
    with bench.app.connection_for_write() as connection, Producer(connection.channel()) as producer:
        trap, bus = Trap(tmp_path / "sprung"), Exchange(f"{bench.app.conf.control_exchange}.pidbox", "fanout")
        for content in ("application/x-python-serialize", "application/json"):
            body = {"body": pickle.dumps(trap), "content_type": content, "content_encoding": "binary"}
            producer.publish(**body, exchange="", routing_key=bench.queue, headers={"task": TASK, "id": "x"})
            producer.publish(**body, exchange=bus, routing_key="", declare=[bus])
    bench.wait_ended(bench.submit(3))
    wait_for(lambda: len(worker.events("control_refused")) == 8, "each command was refused, also the last one")
    assert not (tmp_path / "sprung").exists()
    assert pickle.loads(pickle.dumps(trap)) is None
    assert (tmp_path / "sprung").exists(), "it would have worked"


@pytest.mark.full
def test_a_model_that_is_not_there_takes_no_job(bench: Bench, start_worker: StartWorker) -> None:
    (job_id,) = bench.submit()
    worker = start_worker(ready=False, model="phantom")
    assert worker.wait_exit() == 1
    (line,) = worker.log().splitlines()
    assert "phantom" in line
    assert "fake" in line, "it says which models there are"
    assert bench.job(job_id).state is JobState.QUEUED
    assert bench.publisher.depth(bench.queue) == 1


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"laese_s": 5}, 2, "HEADRACE_LAESE_S"),
        ({"database_url": "postgresql://app@/postgres?host=/nowhere"}, 1, "Postgres"),
        ({"redis_url": "unix:///nowhere/redis.sock"}, 1, "Redis"),
        ({"database_url": ""}, 2, "DATABASE_URL"),
        ({"lease_s": "soon"}, 2, "LEASE_S"),
        ({"log_level": "LOUD"}, 2, "LOUD"),
    ],
)
@pytest.mark.full
def test_what_is_wrong_at_the_start_is_one_line(
    start_worker: StartWorker, changes: dict[str, object], code: int, says: str
) -> None:
    worker = start_worker(ready=False, **changes)
    assert worker.wait_exit() == code
    (line,) = worker.log().splitlines()
    assert says in line
    assert line.startswith("headrace worker: ")


@pytest.mark.full
def test_a_metrics_port(bench: Bench, start_worker: StartWorker) -> None:
    port = free_port()
    worker = start_worker(worker_metrics_port=port)
    bench.wait_ended(bench.submit(3))
    assert "superuser" not in worker.log(), "Celery's word about pickled messages, which are never read"

    def metrics() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
            return str(response.read().decode())

    # A job is counted after its row is written.
    counted = re.compile(r'^headrace_jobs_finished_total\{.*state="succeeded".*\} 3.0$', re.MULTILINE)
    wait_for(lambda: counted.search(metrics()), metrics)
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=5):
        pass  # another address of this machine: it listens only on the configured one
    assert re.search(r"^headrace_engine_output_tokens_total\{.*\} 48.0$", metrics(), re.MULTILINE)
