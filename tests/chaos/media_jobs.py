"""Jobs that make files, under kills: ``make media-kills``.

Pictures and sounds are made from seeds while workers, API processes, the dispatcher, Redis and the file storage are
killed in turn. Each job must end once, with the bytes of an undisturbed run, and after the collector has run no file is
without a job.
"""

import argparse
import hashlib
import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import text

from headrace.cli.local.process import run_step
from headrace.client import Client, JobInfo
from headrace.features.files import files
from headrace.features.files.attempt_states import AttemptStates
from headrace.features.files.blob_storage import ABANDONED_S, open_blobs
from headrace.store.db.database import Database
from headrace.store.seal import PLAIN
from headrace.store.settings import Settings, child_environment
from headrace.tasks import Context, try_out
from tests.chaos.cluster import ROOT, Cluster, Shape, running_cluster
from tests.chaos.media_task import TASK
from tests.folders import reachable_folder
from tests.own_tasks import installed

_KINDS = ("worker-1", "api-1", "storage", "worker-2", "redis", "api-2", "dispatcher-1")
_STORAGE_AWAY_S = 2.0
_SUBMITTERS = 16
_LONG_EVERY = 20

# Every event that ends a job, with those of jobs that ended more than once.
_ENDS = text("""
SELECT job_id, count(*) AS times FROM job_events
WHERE kind IN ('succeeded', 'failed', 'cancelled', 'expired') GROUP BY job_id
""")
_ROWS = text("""
SELECT files.digest, jobs.state FROM files LEFT JOIN jobs ON jobs.id = files.result_of
""")


@dataclass
class Outcome:
    """What became of the jobs. ``resumed``: those that went on from a state of a lost attempt."""

    sent: int
    took_s: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    resumed: int = 0
    lost: list[int] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    differing: list[int] = field(default_factory=list)
    collected: int = 0
    orphans: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """True if each job succeeded once with the right files, and no other file is left."""
        return self.states == {"succeeded": self.sent} and not (
            self.lost or self.doubled or self.differing or self.orphans
        )

    def __str__(self) -> str:
        killed = ", ".join(f"{name} {times}" for name, times in sorted(self.kills.items()))
        ended = ", ".join(f"{state} {times}" for state, times in sorted(self.states.items()))
        return (
            f"{self.sent} jobs in {self.took_s:.0f} s: {ended}; lost {len(self.lost)}, ended twice {len(self.doubled)}"
            f", with other bytes {len(self.differing)}, files without a job {len(self.orphans)} after {self.collected} "
            f"were collected\n{self.attempts} attempts, {self.resumed} jobs went on from a saved state"
            f"\nkilled: {killed}"
        )


class _Storage:
    """The folder of files. While it is away every call to it fails, as with a mount that is gone."""

    def __init__(self, home: Path) -> None:
        self.link, self._real, self._gone = home / "files", home / "storage", home / "gone"
        self._real.mkdir()
        self._gone.write_text("")
        self._back_at: float | None = None
        self._point_to(self._real)

    def kill(self) -> None:
        self._point_to(self._gone)
        self._back_at = time.monotonic() + _STORAGE_AWAY_S

    def tend(self, *, now: bool = False) -> None:
        """Bring it back after its time."""
        if self._back_at is not None and (now or time.monotonic() >= self._back_at):
            self._point_to(self._real)
            self._back_at = None

    def _point_to(self, target: Path) -> None:
        new = self.link.with_name("files.new")
        new.symlink_to(target)
        new.replace(self.link)


def order(number: int) -> dict[str, Any]:
    """Return the input of a job. One in twenty runs for seconds, so that its state is saved."""
    is_long = number % _LONG_EVERY == 0
    shape = {"steps": 50, "pause_s": 0.1} if is_long else {"steps": 4 + number % 5, "pause_s": 0.05}
    return {"kind": "picture" if number % 2 else "sound", "seed": number, **shape}


def undisturbed(numbers: range) -> list[list[str]]:
    """Return the digests of the files of each job, as the runner makes them without a cluster."""
    contexts = [Context() for _ in numbers]
    try_out(TASK, [{**order(number), "pause_s": 0} for number in numbers], contexts=contexts)
    return [[hashlib.sha256(file.content).hexdigest() for file in context.files] for context in contexts]


def run(num_jobs: int, *, kills: int, kill_every_s: float, timeout_s: float, keep_logs: Path | None = None) -> Outcome:
    """Send the jobs under so many kills; return when each has ended, or ``timeout_s`` is over."""
    outcome = Outcome(num_jobs)
    with reachable_folder() as package:
        path = os.pathsep.join([str(installed(package / "own", "media = tests.chaos.media_task:TASK")), str(ROOT)])
        with running_cluster(
            Shape(workers=0, dispatchers=1, has_marks=False, path=path), keep_logs=keep_logs
        ) as cluster:
            storage = _Storage(cluster.folder)
            _serve(cluster, path)
            ended = _disturbed(cluster, storage, outcome, kills, kill_every_s, timeout_s)
            _judge(cluster, outcome, ended)
    return outcome


def _serve(cluster: Cluster, path: str) -> None:
    addresses = {"DATABASE_URL": cluster.database_url, "REDIS_URL": cluster.redis_url, "PYTHONPATH": path}
    argv = [sys.executable, "-m", "headrace.models.catalog", "register", "media", "--task", "media"]
    log = cluster.folder / "logs" / "prepare.log"
    if run_step(argv, child_environment(addresses), log) != 0:
        raise RuntimeError(f"the task is not registered: {log.read_text()[-2000:]}")
    for number in (1, 2):
        cluster.add("worker", f"worker-{number}", model="media")
    cluster.wait_ready()


def _disturbed(
    cluster: Cluster, storage: _Storage, outcome: Outcome, kills: int, kill_every_s: float, timeout_s: float
) -> dict[int, JobInfo]:
    """Send the jobs, kill meanwhile, and return those that have ended."""
    began = time.monotonic()
    until = began + timeout_s
    clients = [Client(url, cluster.tenants[0].key, max_retries=100) for url in cluster.api_urls]

    def one(number: int) -> JobInfo:
        # Accepted by one API process, asked of the other.
        sent = clients[number % 2].submit(task="media", model="media", input=order(number), max_attempts=50)
        return clients[1 - number % 2].wait(sent["id"], timeout_s=max(1.0, until - time.monotonic()))

    kill_at, kinds = began + kill_every_s, cycle(_KINDS)
    with ThreadPoolExecutor(_SUBMITTERS) as pool:
        waited = {number: pool.submit(one, number) for number in range(outcome.sent)}
        while not all(future.done() for future in waited.values()):
            cluster.tend()
            storage.tend()
            if time.monotonic() >= kill_at and outcome.kills.total() < kills:
                name = next(kinds)
                storage.kill() if name == "storage" else cluster.kill(name)
                outcome.kills[name] += 1
                kill_at = time.monotonic() + kill_every_s
            time.sleep(0.05)
    outcome.took_s = time.monotonic() - began
    storage.tend(now=True)
    cluster.wait_ready()
    for client in clients:
        client.close()
    return {number: future.result() for number, future in waited.items() if future.exception() is None}


def _judge(cluster: Cluster, outcome: Outcome, ended: dict[int, JobInfo]) -> None:
    outcome.lost = [number for number in range(outcome.sent) if number not in ended]
    outcome.states = Counter(job["status"] for job in ended.values())
    outcome.attempts = sum(job["attempt"] for job in ended.values())
    expected = undisturbed(range(outcome.sent))
    for number, job in ended.items():
        if job["status"] == "succeeded" and _digests(cluster, number, job) != expected[number]:
            outcome.differing.append(number)
        outcome.resumed += bool((job["output"] or {}).get("resumed_at"))
    with closing(Database(cluster.database_url, application_name="media kills")) as db:
        with db.autocommit() as connection:
            outcome.doubled = [row.job_id for row in connection.execute(_ENDS) if row.times > 1]
        outcome.collected = _collect(cluster, db)
        with db.autocommit() as connection:
            rows = connection.execute(_ROWS).all()
    named = {row.digest for row in rows if row.state == "succeeded"}
    outcome.orphans = sorted(_stored(cluster) ^ named) + [row.digest for row in rows if row.digest not in named]


def _digests(cluster: Cluster, number: int, job: JobInfo) -> list[str]:
    """Return the digests of the files that the API serves for a job, by one process after the other."""
    found = []
    for position, listed in enumerate((job["output"] or {})["files"]):
        url = cluster.api_urls[(number + position) % 2] + listed["url"]
        answer = httpx2.get(url, headers={"Authorization": f"Bearer {cluster.tenants[0].key}"}, trust_env=False)
        found.append(hashlib.sha256(answer.raise_for_status().content).hexdigest())
    return found


def _collect(cluster: Cluster, db: Database) -> int:
    """Run the duties that collect, as after a day; return how many files they removed."""
    settings = Settings(database_url=cluster.database_url, redis_url=cluster.redis_url, home=cluster.folder)
    blobs = open_blobs(settings, PLAIN)
    before = len(_stored(cluster))
    long_ago = time.time() - 2 * ABANDONED_S  # noqa: TID251 - times of files
    for path in (cluster.folder / "files" / "drafts").glob("*"):
        os.utime(path, (long_ago, long_ago))
    AttemptStates(settings, PLAIN).remove_ended(db)
    blobs.sweep()
    while files.remove_unreferenced(db, blobs, older_than_s=0):
        pass
    return before - len(_stored(cluster))


def _stored(cluster: Cluster) -> set[str]:
    """The names of all files in the storage."""
    return {path.name for path in (cluster.folder / "storage").rglob("*") if path.is_file()}


def main() -> int:
    """Run it with the numbers of the command line; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=35)
    parser.add_argument("--kill-every", type=float, default=5.0, help="seconds")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds")
    parser.add_argument("--logs", type=Path)
    asked = parser.parse_args()
    outcome = run(
        asked.jobs,
        kills=asked.kills,
        kill_every_s=asked.kill_every,
        timeout_s=asked.timeout,
        keep_logs=asked.logs,
    )
    sys.stdout.write(f"{outcome}\n")
    return 0 if outcome.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
