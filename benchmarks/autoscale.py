"""``python -m benchmarks.autoscale``: a burst, silence, one job: with 0 to 3 workers as needed, and with fixed ones.

The fake model computes nothing: its steps are pauses, so workers on one machine do not compete for the cores. The
stack, the decisions and the drains are the product's. Jobs lost, waits and worker-seconds are printed, and the numbers
of workers are drawn into ``--picture``. With ``--deadline`` each job has a deadline, so that too few workers are seen:
the API refuses jobs that cannot meet it, and those that miss it expire.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console

from headrace.cli.local.stack import running_stack
from headrace.store.settings import load_settings

console = Console(stderr=True)

_TICK_S = 0.5
_LONGEST_S = 400.0
_SETTINGS = {
    "HEADRACE_FAKE_STEP_MS": "20",
    "HEADRACE_MAX_SLOTS": "4",
    "HEADRACE_AUTOSCALE_WAIT_S": "10",
    "HEADRACE_AUTOSCALE_COOL_DOWN_S": "10",
    "HEADRACE_AUTOSCALE_ZERO_AFTER_S": "20",
}
_ENDED = {"succeeded", "failed", "cancelled", "expired"}
_WIDTH, _HEIGHT, _LEFT = 900, 150, 60


@dataclass
class Run:
    """One run: (seconds, workers wanted, places of workers) at each tick, and the jobs at its end."""

    ticks: list[tuple[float, int, int]] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    warning: str = ""
    refused: int = 0

    @property
    def worker_s(self) -> float:
        """The time of all workers together, from their start to their end."""
        pairs = zip(self.ticks, self.ticks[1:], strict=False)
        return sum((after[0] - before[0]) * before[2] for before, after in pairs)


class Trial:
    """One run against a stack."""

    def __init__(self, client: httpx2.Client, num_jobs: int, deadline_s: float | None) -> None:
        self._client = client
        self._num_jobs = num_jobs
        self._deadline = {} if deadline_s is None else {"deadline_ms": round(1000 * deadline_s)}
        self._began_at = time.monotonic()
        self.run = Run()

    def burst(self, *, to_zero: bool) -> Run:
        """Send the burst, wait for its end and, with ``to_zero``, for the last worker's; then send one job more."""
        self._mark("burst")
        ids = [one for one in (self._submit() for _ in range(self._num_jobs)) if one is not None]
        self.wait(lambda: self._all_ended(ids), "the burst has ended")
        self._mark("burst ended")
        if to_zero:
            self.wait(lambda: self.run.ticks[-1][1:] == (0, 0), "no worker is left")
            self._mark("zero")
        last = self._submit()
        if last is None:
            sys.exit("the API refused the job after the burst: its deadline is too near")
        ids.append(last)
        self._mark("one job")
        self.wait(lambda: self._all_ended([last]), "the last job has ended")
        self._mark("it ended")
        self.run.jobs = [self.get(f"/v1/jobs/{one}") for one in ids]
        return self.run

    def _submit(self) -> str | None:
        """Return the id of an accepted job; None if the API says that it cannot meet its deadline."""
        sampling = {"max_tokens": 100, "temperature": 0, "ignore_eos": True}
        body = {"model": "fake", "input": {"prompt": "go"}, "sampling": sampling, **self._deadline}
        answer = self._client.post("/v1/jobs", json=body)
        if answer.status_code == 400 and answer.json()["error"]["code"] == "deadline_unreachable":
            self.run.refused += 1
            return None
        answer.raise_for_status()
        self.run.warning = answer.headers.get("headrace-warning", "")
        return str(answer.json()["id"])

    def _all_ended(self, ids: Sequence[str]) -> bool:
        return all(self.get(f"/v1/jobs/{one}")["status"] in _ENDED for one in reversed(ids))

    def wait(self, is_done: Callable[[], bool], what: str) -> None:
        """Look again and again until it is done. Ends the program after a long time."""
        give_up_at = time.monotonic() + _LONGEST_S
        while True:
            self._look()
            if is_done():
                return
            if time.monotonic() > give_up_at:
                sys.exit(f"after {_LONGEST_S:.0f} s still not: {what}")
            time.sleep(_TICK_S)

    def _look(self) -> None:
        scaling = self.get("/v1/queues/fake@1")["scaling"] or {"workers": 0, "reason": ""}
        places = [place for host in self.get("/v1/hosts")["data"] for place in host["places"]]
        at = time.monotonic() - self._began_at
        if not self.run.ticks or self.run.ticks[-1][1] != scaling["workers"]:
            self.run.reasons.append(f"{at:5.0f} s  {scaling['workers']}: {scaling['reason']}")
        self.run.ticks.append((at, scaling["workers"], len(places)))

    def _mark(self, what: str) -> None:
        self.run.marks.append((time.monotonic() - self._began_at, what))

    def get(self, path: str) -> dict[str, Any]:
        """Return the JSON body of a GET request for ``path``."""
        return dict(self._client.get(path).raise_for_status().json())


def measured(autoscale: str, num_jobs: int, deadline_s: float | None, home: Path) -> Run:
    """Run a stack with these workers, and the burst on it."""
    least = int(autoscale.partition("..")[0])
    settings = load_settings().model_copy(update={"home": home, "api_port": 0})
    with running_stack(settings, ["fake"], console.print, _SETTINGS, autoscale=autoscale) as stack:
        headers = {"Authorization": f"Bearer {stack.api_key}"}
        with httpx2.Client(base_url=stack.api_url, headers=headers, timeout=30, trust_env=False) as client:
            trial = Trial(client, num_jobs, deadline_s)
            if least:
                trial.wait(lambda: trial.get("/v1/queues/fake@1")["workers"] == least, f"{least} workers serve")
                trial = Trial(client, num_jobs, deadline_s)
            return trial.burst(to_zero=least == 0)


def row(name: str, run: Run) -> str:
    """Return the row of the table."""
    waits = sorted(job["started_at"] - job["created_at"] for job in run.jobs[:-1] if job["started_at"])
    late = sum(job["status"] == "expired" for job in run.jobs)
    lost = sum(job["status"] not in {"succeeded", "expired"} for job in run.jobs)
    last = run.jobs[-1]
    spare_s = min(job["expires_at"] - job["completed_at"] for job in run.jobs if job["status"] == "succeeded")
    whole_s = next(at for at, what in run.marks if what == "burst ended")
    return (
        f"| {name} | {len(run.jobs)} | {run.refused} | {lost} | {late} | {spare_s:.0f} s | {whole_s:.0f} s | "
        f"{statistics.median(waits):.0f} s | {waits[-1]:.0f} s | {last['completed_at'] - last['created_at']:.0f} s | "
        f"{run.worker_s:.0f} |"
    )


def svg(runs: dict[str, Run]) -> str:
    """Return the drawing: for each run the workers that were wanted, and those that there were."""
    end_s = max(run.ticks[-1][0] for run in runs.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT * len(runs) + 30}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for number, (name, run) in enumerate(runs.items()):
        foot = _HEIGHT * (number + 1) - 20
        parts.append(_text(_LEFT, foot - 115, f"{name}: processes (filled), wanted (line)", "bold"))
        points = [(_LEFT + (_WIDTH - 80) * at / end_s, wanted, places) for at, wanted, places in run.ticks]
        area = " ".join(_steps([(x, foot - 25 * places) for x, _, places in points]))
        parts.append(f'<path d="M{points[0][0]:.0f},{foot} L{area} V{foot} Z" fill="#9cc5b5"/>')
        line = " ".join(_steps([(x, foot - 25 * wanted) for x, wanted, _ in points]))
        parts.append(f'<path d="M{line}" fill="none" stroke="#c1121f" stroke-width="2"/>')
        parts += [_text(_LEFT - 20, foot - 25 * one + 4, str(one)) for one in range(4)]
        for place, (at, what) in enumerate(run.marks):
            x = _LEFT + (_WIDTH - 80) * at / end_s
            parts.append(f'<line x1="{x:.0f}" y1="{foot - 85}" x2="{x:.0f}" y2="{foot}" stroke="#666"/>')
            parts.append(_text(x + 3, foot - 88 - 12 * (place % 2), what))
        parts += [
            _text(_LEFT + (_WIDTH - 80) * at / end_s, foot + 14, f"{at} s") for at in range(0, int(end_s) + 1, 30)
        ]
    return "\n".join([*parts, "</svg>\n"])


def _steps(points: Sequence[tuple[float, float]]) -> list[str]:
    return [f"{points[0][0]:.0f},{points[0][1]:.0f}", *(f"H{x:.0f} V{y:.0f}" for x, y in points[1:])]


def _text(x: float, y: float, words: str, weight: str = "normal") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-weight="{weight}">{words}</text>'


def main() -> int:
    """Run both, print the table and draw the picture; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.autoscale")
    parser.add_argument("--jobs", type=int, default=150, help="jobs of the burst")
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="of each job, from its acceptance to its end")
    parser.add_argument("--fixed", default="3", metavar="N,N", help="fixed numbers of workers to run beside, 1 to 3")
    parser.add_argument("--home", type=Path, default=Path("build/autoscale"), help="folder of the stacks' data")
    parser.add_argument("--picture", type=Path, default=Path("build/autoscale.svg"))
    options = parser.parse_args()
    bounds = {"scaled": "0..3", **{f"{number} fixed": f"{number}..{number}" for number in options.fixed.split(",")}}
    runs = {
        name: measured(workers, options.jobs, options.deadline, options.home / workers)
        for name, workers in bounds.items()
    }
    print(f"load average at the end: {os.getloadavg()[0]:.1f}")
    print(
        "| workers | accepted | refused | lost | late | least time to a deadline "
        "| burst ended after | median wait | longest wait | one job | worker-seconds |"
    )
    print("|---|" + "---:|" * 10)
    for name, run in runs.items():
        print(row(name, run))
    print("\n".join(runs["scaled"].reasons))
    print(f"warning at the first job after zero: {runs['scaled'].warning}")
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.write_text(svg(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
