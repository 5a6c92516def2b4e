"""Jobs through a real vLLM while parts of the stack are killed: ``python -m tests.models.external.jobs_on_vllm HOME``.

Start the stack first, with ``headrace up --engine vllm`` in the home folder HOME. With the fake vLLM of ``served`` a
fault takes seconds. The program submits mixed jobs, follows half of them as streams, cancels some, and breaks something
at random times of a seed: the worker, the server, both (``kill -9``), either for a while (SIGSTOP), Redis (FLUSHALL).
After each fault it waits until jobs succeed again, because a server of a busy machine starts slowly. Then it checks
that each job ended, once, and that each stream shows the stored text. Exits 1 if a promise was broken.

Each kind of fault happens once, in an order of the seed: none waits so long that the jobs end before its turn. Then
kinds are drawn until ``--faults-s``. Jobs that have not ended after ``--limit-s`` are reported as such.
"""

import argparse
import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
import redis

from headrace.cli.local.home import Home, StackRecord
from headrace.client import Client, ClientError, JobInfo

RECOVERY_S = 600.0  # the longest wait for jobs after a fault
_WORKER = "workers --model"
_SERVER = ("vllm.entrypoints", "VLLM::", "sglang.launch_server", "sglang::")
_WORDS = "the river runs down from a hill and turns an old wheel while people in town bake bread and write letters"


@dataclass
class Seen:
    """What happened to one job. ``shown`` is the text that its reader has, None without a reader."""

    body: dict[str, object]
    id: str = ""
    is_cancelled: bool = False
    shown: str | None = None
    num_restarts: int = 0
    errors: list[str] = field(default_factory=list)


def main() -> int:
    """Run jobs and faults, check, report; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--model", default="smollm2@vllm")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64, help="the longest answer; fewer for a slow machine")
    parser.add_argument("--gap-s", type=float, default=30.0, help="mean seconds from a recovery to the next fault")
    parser.add_argument("--stop-s", type=float, default=12.0, help="how long a process is stopped")
    parser.add_argument("--faults-s", type=float, default=600.0, help="faults end after so many seconds")
    parser.add_argument("--limit-s", type=float, default=1500.0, help="the whole run ends after so many seconds")
    options = parser.parse_args()
    record = Home(options.home).running()
    if record is None:
        raise SystemExit(f"no stack runs in {options.home}: start it with `headrace up --engine vllm`")
    client = Client(record.api_url, (options.home / "api-key").read_text().strip(), on_warning=lambda text: None)
    draw = random.Random(options.seed)
    jobs = [Seen(_body(options, draw, number)) for number in range(options.jobs)]
    run = Run(record, client, options, jobs, _logged(options.home))
    breaker = threading.Thread(target=run.break_things)
    breaker.start()
    with ThreadPoolExecutor(32) as pool:
        for job in pool.map(run.follow, jobs):
            if job.errors:
                say(f"{job.id} {' '.join(job.errors)}")
    run.done.set()
    breaker.join()
    return _report(run)


def say(line: str) -> None:
    """Print progress."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _body(options: argparse.Namespace, draw: random.Random, number: int) -> dict[str, object]:
    prompt = f"{number}. " + " ".join(draw.choices(_WORDS.split(), k=draw.randint(5, options.tokens)))
    max_tokens = draw.randint(options.tokens // 4, options.tokens)
    sampling = {"max_tokens": max_tokens, "temperature": draw.choice([0, 0, 0.8]), "ignore_eos": True}
    # A job that is killed looks like one that kills: with the default of three attempts it would fail of three faults.
    return {"model": options.model, "input": {"prompt": prompt}, "sampling": sampling, "max_attempts": 9}


@dataclass
class Run:
    """One run: its jobs, and what was broken meanwhile."""

    record: StackRecord
    client: Client
    options: argparse.Namespace
    jobs: list[Seen]
    logged_before: Counter[str]
    faults: Counter[str] = field(default_factory=Counter)
    done: threading.Event = field(default_factory=threading.Event)
    num_succeeded: int = 0
    num_ended: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def follow(self, job: Seen) -> Seen:
        """Submit a job and follow it to its end: by a stream, by polling, or with a cancel in the middle."""
        draw = random.Random(f"{self.options.seed} {job.body}")
        if self.seconds > self.options.limit_s:
            return job
        try:
            job.id = self.client.submit(**job.body)["id"]  # type: ignore[arg-type]
            if draw.random() < 0.1:
                time.sleep(draw.uniform(0, 5))
                self._cancel(job)
            if draw.random() < 0.5:
                self._read(job)
            ended = self.client.wait(job.id, timeout_s=max(1.0, self.options.limit_s - self.seconds))
            has_succeeded = ended["status"] == "succeeded"
            self.num_succeeded += has_succeeded
            if has_succeeded and self.num_succeeded % 10 == 0:
                say(f"{self.seconds:.0f} s: {self.num_succeeded} of {len(self.jobs)} jobs have succeeded")
        except ClientError as error:
            job.errors.append(f"{type(error).__name__}: {error}")
        finally:
            self.num_ended += 1
        return job

    def _cancel(self, job: Seen) -> None:
        try:
            job.is_cancelled = self.client.cancel(job.id)["status"] != "succeeded"
        except ClientError as error:
            if getattr(error, "code", None) != "not_cancellable":
                raise

    def _read(self, job: Seen) -> None:
        job.shown = ""
        for event in self.client.stream(job.id):
            job.num_restarts += event.is_restart
            job.shown = event.text if event.is_restart else job.shown + event.text
            if self.seconds > self.options.limit_s:
                return

    def break_things(self) -> None:
        """Break something again and again, each time after jobs have succeeded since the last time."""
        draw = random.Random(self.options.seed + 1)
        kinds = self.kinds()
        waiting = draw.sample(list(kinds), len(kinds))
        self._wait_for_jobs(0)
        while waiting or self.seconds < self.options.faults_s:
            share = (len(self.faults) + 1) / (len(kinds) + 1) if waiting else 1.0
            if not self._wait_for_turn(draw.uniform(0.5, 1.5) * self.options.gap_s, share * len(self.jobs)):
                return
            name = waiting[0] if waiting else draw.choice(list(kinds))
            num_before = self.num_succeeded
            if kinds[name]():
                waiting = waiting[1:]
                self.faults[name] += 1
                say(f"{self.seconds:.0f} s: {name}, with {num_before} jobs succeeded")
                self._wait_for_jobs(num_before)

    def kinds(self) -> dict[str, Callable[[], int]]:
        """Return what breaks each part; it returns 0 if it found nothing to break."""
        stop_s = self.options.stop_s
        return {
            "worker killed": lambda: _signal(self.record, signal.SIGKILL, _WORKER),
            "server killed": lambda: _signal(self.record, signal.SIGKILL, *_SERVER),
            "both killed": lambda: _signal(self.record, signal.SIGKILL, _WORKER, *_SERVER),
            "worker stopped": lambda: _stop(self.record, stop_s, _WORKER),
            "server stopped": lambda: _stop(self.record, stop_s, *_SERVER),
            "Redis emptied": lambda: int(redis.Redis.from_url(self.record.redis_url).flushall()),
        }

    def _wait_for_turn(self, longest_s: float, num_ended: float) -> bool:
        """Wait until so many jobs have ended, but not longer than so many seconds; return False if all have ended."""
        began = self.seconds
        while not self.done.wait(0.1):
            if self.num_ended >= num_ended or self.seconds >= began + longest_s:
                return True
        return False

    def _wait_for_jobs(self, num_before: int) -> None:
        began = self.seconds
        while self.num_succeeded < num_before + 3 and self.seconds < began + RECOVERY_S and not self.done.wait(0.5):
            pass
        say(f"{self.seconds:.0f} s: jobs succeed after {self.seconds - began:.0f} s")


def _signal(record: StackRecord, number: signal.Signals, *marks: str) -> int:
    """Send a signal to the stack's processes with one of the marks in their command; return how many."""
    num_found = 0
    for process in psutil.Process(record.pid).children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            if "guard" not in command and any(mark in command for mark in marks):
                process.send_signal(number)
                num_found += 1
        except psutil.NoSuchProcess:
            continue
    return num_found


def _stop(record: StackRecord, seconds: float, *marks: str) -> int:
    num_found = _signal(record, signal.SIGSTOP, *marks)
    time.sleep(seconds)
    _signal(record, signal.SIGCONT, *marks)
    return num_found


# Jobs that ended more than once.
_ENDED_TWICE = """
SELECT count(*) FROM (
    SELECT job_id FROM job_events
    WHERE job_id = ANY(%s) AND kind IN ('succeeded', 'failed', 'cancelled', 'expired')
    GROUP BY job_id HAVING count(*) > 1
) AS twice
"""


def _num_ended_twice(record: StackRecord, ids: list[str]) -> int:
    with psycopg.connect(record.database_url.replace("+psycopg", "")) as connection:
        row = connection.execute(_ENDED_TWICE, (ids,)).fetchone()
    assert row is not None
    return int(row[0])


# What the worker and the dispatcher logged of lost attempts.
_LOGGED = ("stale_finish_refused", "lease_lost", "running_alone", "attempt_released")


def _logged(home: Path) -> Counter[str]:
    text = "".join(path.read_text(errors="replace") for path in (home / "logs").glob("worker*.log"))
    return Counter({name: text.count(f'"event": "{name}"') for name in _LOGGED})


def _report(run: Run) -> int:
    jobs = run.jobs
    found = {job.id: run.client.job(job.id) for job in jobs if job.id}
    states = Counter(one["status"] for one in found.values())
    good = [job for job in jobs if job.id and found[job.id]["status"] == "succeeded"]
    splices = [job.id for job in good if job.shown is not None and job.shown != _text(found[job.id])]
    short = [
        job.id
        for job in good
        if found[job.id]["usage"]["output_tokens"] != job.body["sampling"]["max_tokens"]  # type: ignore[index]
    ]
    broken = {
        "not accepted": sum(not job.id for job in jobs),
        "not ended": states["queued"] + states["running"],
        "ended twice": _num_ended_twice(run.record, list(found)),
        "failed": states["failed"] + states["expired"],
        "cancelled without a cancel": sum(one["status"] == "cancelled" for one in found.values())
        - sum(job.is_cancelled and found[job.id]["status"] == "cancelled" for job in jobs if job.id),
        "streams that differ from the stored text": len(splices),
        "outputs of another length": len(short),
        "errors of the client": sum(len(job.errors) for job in jobs),
        "kinds of faults that did not happen": len(run.kinds()) - len(run.faults),
    }
    report = {
        "seed": run.options.seed,
        "jobs": len(jobs),
        "seconds": round(run.seconds, 1),
        "states": states,
        "faults": run.faults,
        "attempts": dict(sorted(Counter(str(one["attempt"]) for one in found.values()).items())),
        "restarts seen by readers": sum(job.num_restarts for job in jobs),
        "in the log of the worker": dict(_logged(run.options.home) - run.logged_before),
        "broken": broken,
        "examples": (splices + short)[:5],
        "errors": [error for job in jobs for error in job.errors][:5],
    }
    print(json.dumps(report, indent=2))  # noqa: T201 - the result
    return 1 if any(broken.values()) else 0


def _text(job: JobInfo) -> str:
    output = job["output"]
    assert isinstance(output, dict)
    return str(output["text"])


if __name__ == "__main__":
    sys.exit(main())
