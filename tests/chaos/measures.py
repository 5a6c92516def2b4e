"""Figures of the promise rows, from a run's history or from its living processes."""

import time
from bisect import bisect_right
from collections import Counter
from contextlib import suppress

import psutil
import psycopg
import redis

from tests.chaos.cluster import Cluster
from tests.chaos.history import History
from tests.chaos.report import Json, recoveries, spread
from tests.chaos.soak import Run, database_of
from tests.chaos.streams import read_stream


def recovery(history: History) -> Json:
    """P5: time from a kill to the requeue and to the next run, from SIGTERM to the release, and errors for users."""
    back = list(recoveries(history))
    killed = {str(e["pid"]) for e in history.of_nemesis("signal") if e["signal"] == "SIGKILL"}
    asked_at = {str(e["pid"]): e["t"] for e in history.of_nemesis("signal") if e["signal"] == "SIGTERM"}
    released = [
        one.ended_at - asked
        for one in history.attempts
        if one.outcome == "released" and one.ended_at and one.ended_at > (asked := asked_at.get(one.pid, 1e12))
    ]
    # Only a kill may cost an attempt: a worker that stops on request returns its jobs.
    charged = [one for one in history.attempts if one.outcome == "worker_lost" and one.pid not in killed]
    return {
        "kill_to_queue_s": spread([to_queue for to_queue, _ in back]),
        "kill_to_run_s": spread([to_run for _, to_run in back if to_run is not None]),
        "term_to_released_s": spread(released),
        "charged_without_a_kill": len(charged),
        # All requests are valid and without a deadline, so a job that did not succeed is also a product error.
        "user_errors": len(history.of_client("refused"))
        + len(history.of_client("gave_up"))
        + sum(job.state != "succeeded" for job in history.jobs),
    }


def phase_times(history: History) -> dict[str, float]:
    """When each phase began."""
    return {event["name"]: event["t"] for event in history.of_nemesis("phase")}


def phases(history: History) -> Json:
    """P7: accepted and finished jobs per phase, the latency of submissions, and answers of 5xx by status."""
    begun = sorted((at, name) for name, at in phase_times(history).items())
    times = [at for at, _ in begun]

    def phase_of(at: float) -> str | None:
        n = bisect_right(times, at) - 1
        return begun[n][1] if n >= 0 else None

    finished = Counter(phase_of(job.completed_at) for job in history.jobs if job.completed_at is not None)
    accepted, errors = history.of_client("accepted"), history.of_client("server_error")
    figures: Json = {}
    for _, name in begun:
        took = sorted(event["ms"] for event in accepted if phase_of(event["t"]) == name)
        p99 = took[min(len(took) - 1, int(0.99 * len(took)))] if took else None
        figures[name] = {
            "accepted": len(took),
            "finished": finished[name],
            "submit_ms_p50": took[len(took) // 2] if took else None,
            "submit_ms_p99": p99,
            "server_errors": dict(Counter(str(one["status"]) for one in errors if phase_of(one["t"]) == name)),
        }
    return figures


def streams(history: History) -> Json:
    """P10: number of ended streams, of their connections, and of ``restarted`` events."""
    events = history.of_client("stream")
    readings = [read_stream(event["events"]) for event in events]
    return {
        "streams_ended": sum(reading.ended is not None for reading in readings),
        "connections": sum(event["cuts"] + 1 for event in events),
        "restarts_said": sum(reading.num_restarts for reading in readings),
    }


def hooks(history: History) -> Json:
    """P11: deliveries to good receivers and their delay, before and during bad receivers."""
    ended = {job.id: job.completed_at for job in history.jobs if job.completed_at is not None}
    good_jobs = {one.job for one in history.deliveries}
    first: dict[str, float] = {}
    for event in history.hooks:
        if event["path"] == "ok" and event["answer"].startswith("2"):
            first.setdefault(event["job"], event["t"])
    bad_from, bad_to = (phase_times(history)[name] for name in ("bad", "killed"))
    after = {job: at - ended[job] for job, at in first.items() if job in ended}
    alone = spread([took for job, took in after.items() if ended[job] < bad_from - 2])
    beside = spread([took for job, took in after.items() if bad_from < ended[job] < bad_to - 2])
    heard = {event["job"] for event in history.hooks if event["answer"].startswith("2")}
    return {
        "ended": len(good_jobs),
        "delivered": len(good_jobs & heard),
        "signature_failures": sum(not event["signed"] for event in history.hooks),
        "answers": dict(Counter(event["answer"] for event in history.hooks)),
        "hook_s_alone": alone,
        "hook_s_beside_bad": beside,
        # Below 0.25 s the figure shows only the sender's poll interval.
        "p95_ratio": round((beside["p95"] or 0) / max(0.25, alone["p95"] or 0), 2),
    }


def resident_mb(cluster: Cluster) -> Json:
    """Resident memory of each process of ours and of Redis, in MB."""
    found: Json = {}
    living = [(one.name, one.child.pid) for one in cluster.members if one.is_alive and one.child is not None]
    for name, pid in [*living, *(("redis", pid) for pid in cluster.server_pids("redis"))]:
        with suppress(psutil.Error):
            found[name] = round(psutil.Process(pid).memory_info().rss / 2**20)
    return found


def peak_memory(run: Run, seconds: float) -> Json:
    """Run for a while; return the peak of each process."""
    peak: Counter[str] = Counter()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        run.wait(0.5)
        for name, mb in resident_mb(run.cluster).items():
            peak[name] = max(peak[name], mb)
    return dict(peak)


def finished_per_s(run: Run, seconds: float = 10.0) -> float:
    """Measure the throughput with a constant backlog."""
    before = _num_finished(run)
    began = time.monotonic()
    run.wait(seconds)
    return max(1.0, (_num_finished(run) - before) / (time.monotonic() - began))


def _num_finished(run: Run) -> int:
    with psycopg.connect(**database_of(run.cluster)) as connection:
        row = connection.execute("SELECT count(*) FROM job_terminal").fetchone()
    return int(row[0]) if row else 0


def refusals(history: History) -> Json:
    """Refused submissions by reason."""
    return dict(Counter(f"{event['status']} {event['code']}" for event in history.of_client("refused")))


def num_subscriptions(cluster: Cluster) -> int:
    """How many job streams are subscribed to in Redis."""
    with redis.Redis.from_url(cluster.redis_url) as client:
        return len(client.pubsub_channels("headrace:stream:job_*"))


def num_fds(cluster: Cluster) -> int:
    """How many file descriptors the APIs hold."""
    pids = [one.child.pid for one in cluster.of_kind("api") if one.child is not None and one.is_alive]
    return sum(psutil.Process(pid).num_fds() for pid in pids)
