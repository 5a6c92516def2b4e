"""``make trial``: mixed jobs through a whole local stack while something is broken under them, and what came of it.

Every job's prompt carries a mark. Afterwards each job must have succeeded, once, with the text that its stream gave;
greedy answers must be those of transformers' ``generate``; and no mark may be found in a log, a broker key of Redis or
Flower. Prints a table and, as its last line, JSON; exits 1 if anything does not hold.
"""

import argparse
import asyncio
import json
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.peers import measure
from benchmarks.workload import ChatJob
from headrace.cli.local.home import Home, StackRecord
from headrace.cli.local.stack import Stack, running_stack
from headrace.store.redis.connection import connect
from headrace.store.settings import load_settings

console = Console(stderr=True)

Json = dict[str, Any]
_TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
_TOPICS = ("rivers", "mills", "bread", "lamps", "bees", "boats", "wool", "letters", "bridges", "rain")


@dataclass(frozen=True)
class Plan:
    """One job: its request, how it is followed, and whether its answer is fixed by the model alone."""

    number: int
    prompt: str
    max_tokens: int
    is_greedy: bool
    is_streamed: bool

    @property
    def body(self) -> Json:
        """The request."""
        # Without the penalty that the version has as its default, which `generate` is not given.
        sampling: Json = {"max_tokens": self.max_tokens, "temperature": 0, "repetition_penalty": 1}
        if not self.is_greedy:
            sampling |= {"temperature": 0.8, "top_p": 0.9, "seed": self.number}
        return {"input": {"messages": [{"role": "user", "content": self.prompt}]}, "sampling": sampling}


@dataclass
class Outcome:
    """What became of one job."""

    job: Json
    events: list[str]
    streamed: str | None
    num_restarts: int
    ended_at: float


@dataclass
class Report:
    """The printed result. Empty ``broken`` means that every promise held."""

    jobs: int
    concurrency: int
    fault: str
    succeeded: int = 0
    duplicate_terminal: int = 0
    attempts_repeated: int = 0
    streams_restarted: int = 0
    seconds: float = 0.0
    seconds_after_fault: float | None = None
    greedy_equal: str = "not checked"
    marks_found: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def plans(count: int, mark: str) -> list[Plan]:
    """Short and long, greedy and sampled, streamed and polled, all mixed."""
    return [
        Plan(
            number=n,
            prompt=f"[{mark}-{n}] Tell me {1 + n % 5} things about {_TOPICS[n % len(_TOPICS)]}." + " Go on." * (n % 40),
            max_tokens=8 + (n * 13) % 73,
            is_greedy=n % 3 != 2,
            is_streamed=n % 2 == 0,
        )
        for n in range(count)
    ]


class Client:
    """Runs plans against one API, at most ``concurrency`` at a time."""

    def __init__(self, stack: Stack, model: str, concurrency: int) -> None:
        self._model = model
        self._places = asyncio.Semaphore(concurrency)
        self._http = httpx2.AsyncClient(
            base_url=stack.api_url,
            headers={"Authorization": f"Bearer {stack.api_key}"},
            timeout=120,
            limits=httpx2.Limits(max_connections=2 * concurrency),
        )
        self.num_done = 0

    async def run_all(self, todo: list[Plan]) -> list[Outcome]:
        """Return the outcomes in the order of the plans."""
        async with self._http:
            return list(await asyncio.gather(*(self._run(plan) for plan in todo)))

    async def _run(self, plan: Plan) -> Outcome:
        async with self._places:
            response = await self._http.post("/v1/jobs", json={"model": self._model, **plan.body})
            response.raise_for_status()
            job_id = response.json()["id"]
            streamed, num_restarts = await self._follow(job_id) if plan.is_streamed else (None, 0)
            job = await self._wait(job_id)
            events = (await self._http.get(f"/v1/jobs/{job_id}/timeline")).raise_for_status().json()["events"]
        self.num_done += 1
        return Outcome(job, [event["kind"] for event in events], streamed, num_restarts, time.monotonic())

    async def _wait(self, job_id: str) -> Json:
        while True:
            response = await self._http.get(f"/v1/jobs/{job_id}", params={"wait": 30})
            job: Json = response.raise_for_status().json()
            if job["status"] in _TERMINAL:
                return job

    async def _follow(self, job_id: str) -> tuple[str, int]:
        """Return the text that the job's stream gave in the end, and how often it began again."""
        text, name, num_restarts = "", "", 0
        async with self._http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
            async for line in response.aiter_lines():
                key, _, value = line.partition(": ")
                if key == "event":
                    name = value
                elif key == "data" and name == "job.restarted":
                    text, num_restarts = json.loads(value)["text"], num_restarts + 1
                elif key == "data" and name == "job.delta":
                    text += json.loads(value)["text"]
        return text, num_restarts


def kill_workers() -> None:
    """Kill every worker of this stack without a word."""
    for process in psutil.Process().children(recursive=True):
        if process.cmdline()[1:5] == ["-P", "-m", "headrace.workers", "--model"]:
            process.send_signal(signal.SIGKILL)


def flush_redis(record: StackRecord) -> None:
    """Wipe Redis."""
    with connect(record.redis_url) as client:
        client.flushall()


def run(stack: Stack, record: StackRecord, home: Home, args: argparse.Namespace) -> Report:
    """Run the trial on a stack that serves; the stack's processes are tended from this thread."""
    mark = f"mark{secrets.token_hex(6)}"
    todo = plans(args.jobs, mark)
    report = Report(args.jobs, args.concurrency, args.fault)
    faults: dict[str, Callable[[], None]] = {"kill-worker": kill_workers, "flush-redis": lambda: flush_redis(record)}
    client = Client(stack, record.models[0], args.concurrency)
    outcomes: list[Outcome] = []
    runner = threading.Thread(target=lambda: outcomes.extend(asyncio.run(client.run_all(todo))), name="client")
    began = time.monotonic()
    broken_at: float | None = None
    runner.start()
    while runner.is_alive():
        stack.supervisor.tend()
        if broken_at is None and args.fault != "none" and client.num_done >= args.jobs // 2:
            console.log(f"{args.fault} after {client.num_done} jobs")
            faults[args.fault]()
            broken_at = time.monotonic()
        runner.join(0.2)
    report.seconds = round(time.monotonic() - began, 1)
    if broken_at is not None:
        report.seconds_after_fault = round(max((o.ended_at for o in outcomes), default=0) - broken_at, 1)
    _judge(report, todo, outcomes)
    report.marks_found = find_mark(mark, stack, record, home)
    _conclude(report, fault_struck=broken_at is not None)
    if args.check:
        _compare(report, todo, outcomes, record, args.check)
    return report


def _judge(report: Report, todo: list[Plan], outcomes: list[Outcome]) -> None:
    if len(outcomes) != len(todo):
        report.broken.append("the client failed before every job had ended")
    for plan, outcome in zip(todo, outcomes, strict=False):
        terminal = [kind for kind in outcome.events if kind in _TERMINAL]
        report.succeeded += outcome.job["status"] == "succeeded"
        report.duplicate_terminal += len(terminal) > 1
        report.attempts_repeated += outcome.events.count("started") > 1
        report.streams_restarted += outcome.num_restarts > 0
        if plan.is_streamed and outcome.job["output"] and outcome.streamed != outcome.job["output"]["text"]:
            report.broken.append(f"{outcome.job['id']}: the stream's text is not the stored one")


def _conclude(report: Report, *, fault_struck: bool) -> None:
    if report.succeeded != report.jobs:
        report.broken.append(f"{report.jobs - report.succeeded} jobs did not succeed")
    if report.duplicate_terminal:
        report.broken.append(f"{report.duplicate_terminal} jobs ended twice")
    if report.marks_found:
        report.broken.append("prompt text was found where none may be")
    if report.fault != "none" and not fault_struck:
        report.broken.append("nothing was broken: too few jobs for a fault")
    if report.fault == "kill-worker" and not report.attempts_repeated:
        report.broken.append("the kill hit no running job")


def _compare(report: Report, todo: list[Plan], outcomes: list[Outcome], record: StackRecord, most: int) -> None:
    greedy = [(plan, outcome) for plan, outcome in zip(todo, outcomes, strict=False) if plan.is_greedy][:most]
    console.log(f"transformers generate for {len(greedy)} greedy jobs")
    jobs = [ChatJob(plan.prompt, plan.max_tokens, ignore_eos=False) for plan, _ in greedy]
    expected = measure("generate", record, record.models[0], jobs)["texts"]
    pairs = zip(greedy, expected, strict=True)
    equal = sum((outcome.job["output"] or {}).get("text") == text for (_, outcome), text in pairs)
    report.greedy_equal = f"{equal} of {len(greedy)}"
    if equal != len(greedy):
        report.broken.append(f"{len(greedy) - equal} greedy answers differ from transformers'")


def find_mark(mark: str, stack: Stack, record: StackRecord, home: Home) -> list[str]:
    """Return the places outside Postgres and the token streams where the mark stands."""
    found = [str(path) for path in sorted(Path(home.path / "logs").glob("*")) if mark.encode() in path.read_bytes()]
    with connect(record.redis_url) as client:
        keys = [key for key in client.scan_iter(count=1000) if not key.startswith(b"headrace:stream:")]
        found += [f"Redis {key!r}" for key in keys if mark.encode() in (client.dump(key) or b"")]
    auth = (stack.flower_user, stack.flower_password)
    for page in ("/api/tasks?limit=1000", "/api/workers", "/tasks"):
        if mark in httpx2.get(stack.flower_url + page, auth=auth, timeout=30).raise_for_status().text:
            found.append(f"Flower {page}")
    return found


def _table(report: Report) -> Table:
    table = Table(title=f"{report.jobs} jobs, {report.concurrency} at a time, fault: {report.fault}", show_header=False)
    for name, value in vars(report).items():
        if name not in {"jobs", "concurrency", "fault"}:
            table.add_row(name.replace("_", " "), ", ".join(value) or "none" if isinstance(value, list) else str(value))
    return table


def main() -> None:
    """Run one trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--fault", choices=["none", "kill-worker", "flush-redis"], default="none")
    parser.add_argument("--check", type=int, default=0, help="how many greedy answers to hold against transformers")
    parser.add_argument("--model", default="smollm2")
    args = parser.parse_args()
    settings = load_settings()
    home = Home(settings.home)
    with running_stack(settings, [args.model], console.log, {"HEADRACE_DTYPE": "float32"}) as stack:
        record = home.record()
        if record is None:
            raise SystemExit("the stack left no record of its services")
        report = run(stack, record, home, args)
    console.print(_table(report))
    print(json.dumps(vars(report)))
    sys.exit(1 if report.broken else 0)


if __name__ == "__main__":
    main()
