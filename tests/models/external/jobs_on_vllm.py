"""Jobs through a real vLLM while parts of the stack are killed: ``python -m tests.models.external.jobs_on_vllm HOME``.

Start the stack first, with ``headrace up --engine vllm`` in the home folder HOME. The program submits mixed jobs,
follows half of them as streams, cancels some, and breaks something at random times of a seed: the worker, the server,
both (``kill -9``), the server for a while (SIGSTOP), Redis (FLUSHALL). Then it checks that each job ended, once, and
that each stream shows the stored text. Exits 1 if a promise was broken.
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

from cli.local.home import Home, StackRecord
from headrace.client import Client, ClientError, JobInfo

WAIT_S = 1200.0
_WORKER = "workers --model"
_SERVER = ("vllm.entrypoints", "VLLM::")
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
    parser.add_argument("--gap-s", type=float, default=45.0, help="mean seconds between faults")
    parser.add_argument("--stop-s", type=float, default=12.0, help="how long a stopped server is stopped")
    options = parser.parse_args()
    record = Home(options.home).running()
    if record is None:
        raise SystemExit(f"no stack runs in {options.home}: start it with `headrace up --engine vllm`")
    client = Client(record.api_url, (options.home / "api-key").read_text().strip(), on_warning=lambda text: None)
    draw = random.Random(options.seed)
    jobs = [Seen(_body(options.model, draw, number)) for number in range(options.jobs)]
    done = threading.Event()
    faults: Counter[str] = Counter()
    breaker = threading.Thread(target=_break, args=(record, random.Random(options.seed + 1), options, done, faults))
    breaker.start()
    started = time.monotonic()
    with ThreadPoolExecutor(32) as pool:
        for job in pool.map(lambda job: _follow(client, job, options.seed), jobs):
            say(f"{job.id} {'cancelled' if job.is_cancelled else ''}{' '.join(job.errors)}")
    done.set()
    breaker.join()
    return _report(record, client, jobs, faults, time.monotonic() - started)


def say(line: str) -> None:
    """Print progress."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _body(model: str, draw: random.Random, number: int) -> dict[str, object]:
    prompt = f"{number}. " + " ".join(draw.choices(_WORDS.split(), k=draw.randint(5, 120)))
    sampling = {"max_tokens": draw.randint(8, 120), "temperature": draw.choice([0, 0, 0.8]), "ignore_eos": True}
    return {"model": model, "input": {"prompt": prompt}, "sampling": sampling}


def _follow(client: Client, job: Seen, seed: int) -> Seen:
    """Submit a job and follow it to its end: by a stream, by polling, or with a cancel in the middle."""
    draw = random.Random(f"{seed} {job.body}")
    try:
        job.id = client.submit(**job.body)["id"]  # type: ignore[arg-type]
        if draw.random() < 0.1:
            time.sleep(draw.uniform(0, 5))
            job.is_cancelled = client.cancel(job.id)["status"] == "cancelled" or job.is_cancelled
        if draw.random() < 0.5:
            job.shown = ""
            for event in client.stream(job.id):
                job.num_restarts += event.is_restart
                job.shown = event.text if event.is_restart else job.shown + event.text
        client.wait(job.id, timeout_s=WAIT_S)
    except ClientError as error:
        if "not_cancellable" not in str(getattr(error, "code", "")):
            job.errors.append(f"{type(error).__name__}: {error}")
        elif job.id:
            client.wait(job.id, timeout_s=WAIT_S)
    return job


def _break(
    record: StackRecord, draw: random.Random, options: argparse.Namespace, done: threading.Event, faults: Counter[str]
) -> None:
    kinds: dict[str, Callable[[], int]] = {
        "worker killed": lambda: _signal(record, signal.SIGKILL, _WORKER),
        "server killed": lambda: _signal(record, signal.SIGKILL, *_SERVER),
        "both killed": lambda: _signal(record, signal.SIGKILL, _WORKER, *_SERVER),
        "server stopped": lambda: _stop_server(record, options.stop_s),
        "Redis emptied": lambda: int(redis.Redis.from_url(record.redis_url).flushall()),
    }
    waiting = list(kinds)
    draw.shuffle(waiting)
    while not done.wait(draw.uniform(0.5, 1.5) * options.gap_s):
        name = waiting.pop() if waiting else draw.choice(list(kinds))
        if kinds[name]():
            faults[name] += 1
            say(f"--- {name}")


def _signal(record: StackRecord, number: signal.Signals, *marks: str) -> int:
    """Send a signal to the stack's processes with one of the marks in their command; return how many."""
    count = 0
    for process in psutil.Process(record.pid).children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            if "guard" not in command and any(mark in command for mark in marks):
                process.send_signal(number)
                count += 1
        except psutil.NoSuchProcess:
            continue
    return count


def _stop_server(record: StackRecord, seconds: float) -> int:
    count = _signal(record, signal.SIGSTOP, *_SERVER)
    time.sleep(seconds)
    _signal(record, signal.SIGCONT, *_SERVER)
    return count


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


def _report(record: StackRecord, client: Client, jobs: list[Seen], faults: Counter[str], seconds: float) -> int:
    found = {job.id: client.job(job.id) for job in jobs if job.id}
    states = Counter(one["status"] for one in found.values())
    splices = [
        job.id
        for job in jobs
        if job.shown is not None and found[job.id]["status"] == "succeeded" and job.shown != _text(found[job.id])
    ]
    short = [
        job.id
        for job in jobs
        if job.id
        and found[job.id]["status"] == "succeeded"
        and found[job.id]["usage"]["output_tokens"] != job.body["sampling"]["max_tokens"]  # type: ignore[index]
    ]
    broken = {
        "not accepted": sum(not job.id for job in jobs),
        "not ended": sum(states[state] for state in ("queued", "running")),
        "ended twice": _num_ended_twice(record, list(found)),
        "failed": states["failed"] + states["expired"],
        "cancelled without a cancel": max(0, states["cancelled"] - sum(job.is_cancelled for job in jobs)),
        "streams that differ from the stored text": len(splices),
        "outputs of another length": len(short),
    }
    attempts = Counter(one.get("attempts", one.get("attempt")) for one in found.values())
    report = {
        "jobs": len(jobs),
        "seconds": round(seconds, 1),
        "states": states,
        "faults": faults,
        "attempts": {str(key): value for key, value in attempts.items()},
        "restarts seen by readers": sum(job.num_restarts for job in jobs),
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
