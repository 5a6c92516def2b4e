"""``python -m benchmarks.planner``: the forecast of ``headrace plan`` beside three live bursts.

A stack of the product with 0 to 3 workers of the fake model. A step of that model is a pause. The rates of a worker are
fitted to a first burst, which is not judged. Then three bursts of other shapes are sent. The 95th percentile of their
waits is compared with that of the simulation, which knows only when the jobs arrived and how long they are. Exit code 1
if one is further off than ``--within``.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import httpx2
from rich.console import Console

from headrace.cli.local.home import Home
from headrace.cli.local.stack import Stack, running_stack
from headrace.features.planner.fitting import arrivals_of, fitted
from headrace.features.planner.forecast import percentile
from headrace.features.planner.job_history import EndedJob, read_ended
from headrace.features.planner.rates import Rates
from headrace.features.planner.simulation import Capacity, simulate
from headrace.store.db.database import Database
from headrace.store.scheduling.autoscale import ScaleLimits
from headrace.store.scheduling.scale_decisions import read_decisions, read_histories, read_slots
from headrace.store.settings import load_settings

console = Console(stderr=True)

_LOOK_S = 0.5
_LONGEST_S = 400.0
_SLOTS = 4
_LIMITS = ScaleLimits(0, 3, wait_s=10.0, cool_down_s=10.0, zero_after_s=20.0)
_SETTINGS = {
    "HEADRACE_FAKE_STEP_MS": "20",
    "HEADRACE_MAX_SLOTS": str(_SLOTS),
    "HEADRACE_AUTOSCALE_WAIT_S": str(_LIMITS.wait_s),
    "HEADRACE_AUTOSCALE_COOL_DOWN_S": str(_LIMITS.cool_down_s),
    "HEADRACE_AUTOSCALE_ZERO_AFTER_S": str(_LIMITS.zero_after_s),
}
_QUEUE = "fake@1"

Burst = list[tuple[float, int]]
"""When each job is sent, in seconds, and how many tokens it generates."""


def bursts(size: float) -> dict[str, Burst]:
    """Return the burst for the fit, and the three that are judged. ``size``: a factor of the number of jobs."""
    random = Random(7)
    fit, steep, ramp, wave = (round(size * number) for number in (60, 110, 140, 50))
    return {
        "fit": [(0.0, 100)] * fit,
        "steep": [(0.0, 100)] * steep,
        "ramp": [(30.0 * size * number / ramp, 150) for number in range(ramp)],
        "two waves": [(15.0 * (number // wave), random.randint(20, 200)) for number in range(2 * wave)],
    }


def send(client: httpx2.Client, burst: Burst) -> None:
    """Send the jobs at their times, or as soon after as the API takes them."""
    began_at = time.monotonic()
    for at_s, tokens in burst:
        time.sleep(max(0.0, began_at + at_s - time.monotonic()))
        sampling = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        client.post(
            "/v1/jobs", json={"model": "fake", "input": {"prompt": "go"}, "sampling": sampling}
        ).raise_for_status()


class Decisions:
    """Prints each new number of workers of the live stack."""

    def __init__(self) -> None:
        self._began_at = time.monotonic()
        self._last: int | None = None

    def look(self, db: Database) -> None:
        """Print the decision that is in force if its number is new."""
        found = read_decisions(db).get(_QUEUE)
        if found is not None and found.replicas != self._last:
            self._last = found.replicas
            at_s = time.monotonic() - self._began_at
            console.print(f"live     {at_s:5.0f} s  {found.replicas}: {found.reason}")


def wait_for_ends(db: Database, num_jobs: int, decisions: Decisions) -> list[EndedJob]:
    """Return all jobs of the stack when the given number has ended. Ends the program at the time limit."""
    give_up_at = time.monotonic() + _LONGEST_S
    while len(found := read_ended(db, _QUEUE, 86_400.0)) < num_jobs:
        decisions.look(db)
        if time.monotonic() > give_up_at:
            sys.exit(f"after {_LONGEST_S:.0f} s only {len(found)} of {num_jobs} jobs have ended")
        time.sleep(_LOOK_S)
    return found


def live(stack: Stack, db: Database, pause_s: float, size: float) -> tuple[dict[str, list[EndedJob]], Rates]:
    """Send all bursts, with a pause after each; return their jobs and the rates that the first one shows."""
    found: dict[str, list[EndedJob]] = {}
    rates: Rates | None = None
    num_jobs = 0
    decisions = Decisions()
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    with httpx2.Client(base_url=stack.api_url, headers=headers, timeout=30, trust_env=False) as client:
        for name, burst in bursts(size).items():
            console.print(f"{name}: {len(burst)} jobs")
            send(client, burst)
            jobs = wait_for_ends(db, num_jobs + len(burst), decisions)
            found[name] = jobs[num_jobs:]
            num_jobs += len(burst)
            if rates is None:
                seen_s = read_histories(db, [_QUEUE])[_QUEUE].cold_start_s
                slots = read_slots(db).get(_QUEUE, _SLOTS)
                rates = fitted(jobs, _QUEUE, cold_start_s=seen_s or 10.0, slots=slots)
                console.print(rates.model_dump_json())
            rest_at = time.monotonic() + pause_s
            while time.monotonic() < rest_at:
                decisions.look(db)
                time.sleep(_LOOK_S)
    return found, rates


def compared(found: dict[str, list[EndedJob]], rates: Rates) -> list[tuple[str, float, float]]:
    """Return for each burst its 95th percentile of the waits, live and forecast, in seconds."""
    jobs = [job for burst in found.values() for job in burst]
    run = simulate(arrivals_of(jobs), rates, Capacity("0..3 scaled", limits=_LIMITS))
    for at_s, replicas, reason in run.reasons:
        console.print(f"forecast {at_s:5.0f} s  {replicas}: {reason}")
    rows = []
    first = 0
    for name, burst in found.items():
        simulated = run.jobs[first : first + len(burst)]
        first += len(burst)
        forecast = percentile([job.started_at - job.arrival.at_s for job in simulated], 0.95)
        waits = [(job.started_at - job.created_at).total_seconds() for job in burst]
        rows.append((name, percentile(waits, 0.95), forecast))
    return rows


def report(rows: Sequence[tuple[str, float, float]]) -> float:
    """Print the table; return the greatest error of the bursts that are judged, as a part of the live wait."""
    print("| burst | p95 wait, live | forecast | error |")
    print("|---|---:|---:|---:|")
    for name, measured, forecast in rows:
        note = " (fitted to it)" if name == "fit" else ""
        print(f"| {name}{note} | {measured:.1f} s | {forecast:.1f} s | {forecast / measured - 1:+.0%} |")
    return max(abs(forecast / measured - 1) for name, measured, forecast in rows if name != "fit")


def main() -> int:
    """Run the bursts and compare; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner")
    parser.add_argument("--home", type=Path, default=Path("build/planner"), help="folder for the stack's data")
    parser.add_argument("--pause", type=float, default=90.0, help="seconds after each burst; 90 let the workers leave")
    parser.add_argument("--size", type=float, default=1.0, help="a factor of the number of jobs")
    parser.add_argument("--within", type=float, default=0.2, help="the greatest error that is right")
    options = parser.parse_args()
    options.home.mkdir(parents=True, exist_ok=True)
    # A stack of its own: an earlier one would bring its jobs and what its autoscaler had learnt.
    with tempfile.TemporaryDirectory(dir=options.home) as folder:
        settings = load_settings().model_copy(update={"home": Path(folder), "api_port": 0})
        bounds = f"{_LIMITS.least}..{_LIMITS.most}"
        with running_stack(settings, ["fake"], console.print, _SETTINGS, autoscale=bounds) as stack:
            record = Home(settings.home).running()
            db = Database(record.database_url, pool_size=1, application_name="headrace benchmark")
            try:
                found, rates = live(stack, db, options.pause, options.size)
            finally:
                db.close()
    worst = report(compared(found, rates))
    print(f"greatest error {worst:.0%}; load average at the end: {os.getloadavg()[0]:.1f}")
    return 0 if worst <= options.within else 1


if __name__ == "__main__":
    sys.exit(main())
