"""``python -m benchmarks.many_models RUN``: five models and four adapters in memory for two of them.

RUN is one of these, in this order. ``prepare`` registers and verifies everything; it needs ``--smollm2 FOLDER`` and
``--minilm FOLDER``. ``fixed`` is five workers that are always loaded. ``host`` is a model host with memory for the two
largest models. ``kills`` is the same with ``kill -9`` of a worker at a third of the time and of the host at two thirds.
``report`` prints the table and draws the picture. The arrivals of all runs are the same: bursts of jobs for each of the
nine names, from a fixed seed. A run ends when every job has ended.
"""

import argparse
import json
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.many_models.drawing import svg
from benchmarks.many_models.models import ADAPTERS, MODELS, Model, make_folders, register_all, wait_verified
from headrace.cli.local.stack import Stack, running_stack
from headrace.store.settings import Settings, load_settings

console = Console(stderr=True)

SEED = 20_261_128
_TICK_S = 0.25
_ENDED = {"succeeded", "failed", "cancelled", "expired"}


def arrivals(seconds: float) -> list[tuple[float, Model]]:
    """Return the jobs of all models by their time: each model gets a burst of 2 to 6 jobs every 15 to 45 s."""
    draw = random.Random(SEED)
    found = []
    for model in (*MODELS, *ADAPTERS):
        at = draw.uniform(0, 20)
        while at < seconds:
            found += [(at, model)] * draw.randint(2, 6)
            at += draw.uniform(15, 45)
    return sorted(found, key=lambda one: one[0])


def order(model: Model, number: int) -> dict[str, Any]:
    """Return the body of a job."""
    if model.task == "embed":
        return {"model": model.name, "task": "embed", "input": {"texts": [f"Text {number} about rivers and mills."]}}
    sampling = {"max_tokens": 24, "temperature": 0, "ignore_eos": True}
    return {"model": model.name, "input": {"prompt": f"Question {number}: which river is it?"}, "sampling": sampling}


class Run:
    """One run on a stack. It sends the jobs, kills processes, and records the reports of the host."""

    def __init__(self, stack: Stack, client: httpx2.Client, seconds: float, kills: Sequence[tuple[float, str]]) -> None:
        self._stack = stack
        self._client = client
        self._seconds = seconds
        self._kills = list(kills)
        self.killed: list[tuple[float, str]] = []
        self.jobs: list[tuple[str, Model]] = []
        self.places: list[tuple[float, dict[str, str]]] = []
        self.most_bytes = 0
        self.num_swaps = 0
        self._swaps: dict[int, int] = {}

    def run(self) -> float:
        """Send all jobs and wait until each has ended; return the seconds that it took."""
        waiting, began = arrivals(self._seconds), time.monotonic()
        next_look = 0.0
        while True:
            at = time.monotonic() - began
            self._stack.supervisor.tend()
            while waiting and waiting[0][0] <= at:
                self._send(waiting.pop(0)[1])
            while self._kills and self._kills[0][0] <= at and self._kill(self._kills[0][1]):
                self.killed.append((round(at, 1), self._kills.pop(0)[1]))
            if at >= next_look:
                next_look = at + 0.5
                self._look(at)
                if not waiting and not self._num_open():
                    return at
            time.sleep(_TICK_S)

    def _send(self, model: Model) -> None:
        answer = self._client.post("/v1/jobs", json=order(model, len(self.jobs)))
        answer.raise_for_status()
        self.jobs.append((answer.json()["id"], model))

    def _look(self, at: float) -> None:
        hosts = self._client.get("/v1/hosts").json()["data"]
        for host in hosts:
            self.places.append((round(at, 2), {place["queue"]: place["state"] for place in host["places"]}))
            self.most_bytes = max(self.most_bytes, host["needed_bytes"])
            self._swaps[host["started_at"]] = host["num_swaps"]
        self.num_swaps = sum(self._swaps.values())

    def _num_open(self) -> int:
        queues = self._client.get("/v1/queues").json()["data"]
        return sum(queue["queued"]["jobs"] + queue["running"] for queue in queues)

    def _kill(self, what: str) -> bool:
        """Kill a worker that has jobs, or the host; return False if there is none now."""
        processes = psutil.Process().children(recursive=True)
        commands = {one.pid: one.cmdline() for one in processes if one.is_running()}
        wanted = "headrace.features.hosts" if what == "host" else "workers"
        found = [pid for pid, words in commands.items() if wanted in words]
        if what == "worker":
            states = self.places[-1][1] if self.places else {}
            serving = {queue for queue, state in states.items() if state == "serving"}
            found = [pid for pid in found if serving & set(commands[pid])]
        if found:
            os.kill(found[0], signal.SIGKILL)
        return bool(found)


def measure(name: str, options: argparse.Namespace, settings: Settings, memory: str | None) -> dict[str, Any]:
    """Start a stack, make one run on it, and return the measurements."""
    kills = [(options.seconds / 3, "worker"), (2 * options.seconds / 3, "host")] if name == "kills" else []
    models = [model.name for model in MODELS]
    with running_stack(settings, models, console.print, memory=memory) as stack, _client(stack) as client:
        run = Run(stack, client, options.seconds, kills)
        took_s = run.run()
        found = _outcomes(client, run.jobs)
    return {
        "seconds": round(took_s, 1),
        "jobs": len(run.jobs),
        "swaps": run.num_swaps,
        "most_bytes": run.most_bytes,
        "places": run.places,
        "kills": run.killed,
        "load_average": round(os.getloadavg()[0], 1),
        **found,
    }


def _outcomes(client: httpx2.Client, jobs: Sequence[tuple[str, Model]]) -> dict[str, Any]:
    """Read every job again: its state, how often it ended, and from its timeline how long it waited and took."""
    waits: dict[str, list[float]] = {}
    took, ends, repeated = [], [], 0
    states: dict[str, int] = {}
    for job_id, model in jobs:
        job = client.get(f"/v1/jobs/{job_id}").json()
        states[job["status"]] = states.get(job["status"], 0) + 1
        events = client.get(f"/v1/jobs/{job_id}/timeline").json()["events"]
        begun = [event["at"] for event in events if event["kind"] == "started"]
        ended = [event["at"] for event in events if event["kind"] in _ENDED]
        ends.append(len(ended))
        repeated += len(begun) > 1
        if begun and ended:
            waits.setdefault(model.name, []).append(begun[0] - events[0]["at"])
            took.append(ended[-1] - events[0]["at"])
    return {
        "states": states,
        "lost": sum(number == 0 for number in ends),
        "ended_twice": sum(number > 1 for number in ends),
        "repeated": repeated,
        "waits": {name: _summary(found) for name, found in waits.items()},
        "wait": _summary([wait for found in waits.values() for wait in found]),
        "took": _summary(took),
    }


def _summary(waits: Sequence[float]) -> dict[str, float]:
    ordered = sorted(waits)
    return {
        "p50": round(statistics.median(ordered), 2),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], 2),
        "max": round(ordered[-1], 2),
    }


def _client(stack: Stack) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    return httpx2.Client(base_url=stack.api_url, headers=headers, timeout=60, trust_env=False)


def prepare(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """Build the folders, register everything and let a host verify it; return the memory of each model."""
    folders = options.out / "models"
    make_folders(folders, options.smollm2, options.minilm)
    with running_stack(settings, ["fake"], console.print, memory="3GiB") as stack, _client(stack) as client:
        register_all(folders, settings.home.absolute())
        return {"memory": wait_verified(client, stack.supervisor.tend)}


def report(found: dict[str, Any], picture: Path) -> None:
    """Print the table and write the picture."""
    table = Table("", *(name for name in ("fixed", "host", "kills") if name in found))
    rows = {
        "jobs": lambda run: str(run["jobs"]),
        "seconds": lambda run: f"{run['seconds']:.0f}",
        "ended": lambda run: ", ".join(f"{number} {state}" for state, number in run["states"].items()),
        "lost, ended twice": lambda run: f"{run['lost']}, {run['ended_twice']}",
        "repeated": lambda run: str(run["repeated"]),
        "swaps an hour": lambda run: f"{3600 * run['swaps'] / run['seconds']:.0f}",
        "most memory, MiB": lambda run: f"{run['most_bytes'] / (1 << 20):.0f}",
        "wait p50, p95, max (s)": lambda run: " ".join(str(run["wait"][name]) for name in ("p50", "p95", "max")),
        "end p50, p95, max (s)": lambda run: " ".join(str(run["took"][name]) for name in ("p50", "p95", "max")),
        "load average": lambda run: str(run["load_average"]),
    }
    for title, cell in rows.items():
        table.add_row(title, *(cell(found[name]) for name in ("fixed", "host", "kills") if name in found))
    console.print(table)
    bands = {"host": "A model host", "kills": "The same, with kill -9 of a worker and of the host"}
    names = [model.name for model in MODELS]
    picture.write_text(svg({title: found[name] for name, title in bands.items() if name in found}, names))


def main() -> int:
    """Make one run, or the report; all results are kept in one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=["prepare", "fixed", "host", "kills", "report"])
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--minilm", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long jobs arrive")
    parser.add_argument("--out", type=Path, default=Path("build/many-models"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out.absolute() / "results.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    settings = load_settings().model_copy(update={"home": options.out.absolute() / "home"})
    if options.run == "report":
        report(found, options.out / "many-models.svg")
        return 0
    if options.run == "prepare":
        found |= prepare(options, settings)
    else:
        # Both versions of the larger model, which are the two largest of all.
        budget = sum(sorted(found["memory"].values())[-2:])
        memory = None if options.run == "fixed" else f"{budget / (1 << 20):.0f}MiB"
        found[options.run] = measure(options.run, options, settings, memory) | {"budget_bytes": budget}
    results.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
