"""``python -m benchmarks.cheap_hours``: a week of jobs, started at once and in cheap hours, on the same workers.

The week is generated: the same one at every run, with busy working days. Each start is decided by the function that the
API calls at acceptance. The rest is a simulation: so many workers, one job at a time on each, in the order of the
product for one tenant (class, deadline). Exit code 1 if a deadline is missed, or less than ``--least`` is saved.
"""

import argparse
import heapq
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from zoneinfo import ZoneInfo

from headrace.features.cheap_hours.hours import CheapHours, read_hours

ZONE = ZoneInfo("Europe/Zurich")
MONDAY = datetime(2026, 11, 30, tzinfo=ZONE).astimezone(UTC)
HOURS = 24 * 7
WINDOWS = ("22:00-06:00 Europe/Zurich", "SAT-SUN 00:00-24:00 Europe/Zurich")

JOBS, WORK_S, WORKERS = 24_000, 120.0, 16
# Of all jobs: those that are wanted at once, and those that may wait, by their deadline in hours.
AT_ONCE = 0.35
DEADLINES_H = {2: 0.05, 8: 0.1, 24: 0.35, 72: 0.15}
_NIGHT, _DAY, _WEEKEND = 0.12, 1.0, 0.25


@dataclass(frozen=True, slots=True)
class Work:
    """A job. Times are seconds from the Monday. ``deadline_at``: None for one that is wanted at once."""

    at: float
    work_s: float
    deadline_at: float | None


@dataclass(slots=True)
class Replay:
    """What became of the week: busy worker-hours in each hour, and jobs after their deadline."""

    worker_hours: list[float]
    late: int
    started_cheap: int


def week(seed: int) -> list[Work]:
    """Return the jobs of the week, by time."""
    random = Random(seed)
    shape = [_busy(MONDAY + timedelta(hours=hour, minutes=30)) for hour in range(HOURS)]
    kinds = {None: AT_ONCE, **DEADLINES_H}
    found = []
    for hour in random.choices(range(HOURS), shape, k=JOBS):
        at = 3600 * (hour + random.random())
        work_s = min(1800.0, random.lognormvariate(math.log(WORK_S) - 0.5, 1.0))
        (kind,) = random.choices(list(kinds), list(kinds.values()))
        found.append(Work(at, work_s, None if kind is None else at + 3600 * kind))
    return sorted(found, key=lambda one: one.at)


def _busy(at: datetime) -> float:
    local = at.astimezone(ZONE)
    if local.weekday() >= 5:
        return _WEEKEND
    return _NIGHT + (_DAY - _NIGHT) * max(0.0, math.sin(math.pi * (local.hour + 0.5 - 7) / 12))


def replay(jobs: Sequence[Work], hours: CheapHours | None, workers: int) -> Replay:
    """Return what becomes of the jobs; ``hours``: None starts all at once."""
    ready: list[tuple[float, int, float, int]] = []
    for number, job in enumerate(jobs):
        start = None
        if hours is not None and job.deadline_at is not None:
            start = hours.start(MONDAY + timedelta(seconds=job.at), job.deadline_at - job.at)
        ready_at = job.at if start is None else (start - MONDAY).total_seconds()
        ready.append((ready_at, *((0, 0.0) if job.deadline_at is None else (2, job.deadline_at)), number))
    ready.sort()
    found = Replay([0.0] * HOURS * 2, 0, 0)
    free, waiting, given, now = [0.0] * workers, [], 0, 0.0
    while given < len(ready) or waiting:
        now = max(now, free[0])
        if not waiting:
            now = max(now, ready[given][0])
        while given < len(ready) and ready[given][0] <= now:
            heapq.heappush(waiting, ready[given][1:])
            given += 1
        job = jobs[heapq.heappop(waiting)[2]]
        heapq.heapreplace(free, now + job.work_s)
        _count(found, now, now + job.work_s)
        found.late += job.deadline_at is not None and now + job.work_s > job.deadline_at
        found.started_cheap += is_cheap(now)
    return found


def _count(found: Replay, begin: float, end: float) -> None:
    while begin < end:
        hour = int(begin // 3600)
        until = min(end, 3600.0 * (hour + 1))
        found.worker_hours[hour] += (until - begin) / 3600
        begin = until


def is_cheap(at: float) -> bool:
    """True if the operator's hours are cheap at this second of the week."""
    return read_hours(WINDOWS).start(MONDAY + timedelta(seconds=at), None) is None


def main() -> int:
    """Replay the week twice, print the figures, draw them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=38)
    parser.add_argument("--least", type=float, default=0.4)
    parser.add_argument("--svg", type=Path)
    asked = parser.parse_args()
    jobs = week(asked.seed)
    runs = {"at once": replay(jobs, None, WORKERS), "cheap hours": replay(jobs, read_hours(WINDOWS), WORKERS)}
    expensive = [hour for hour in range(HOURS) if not is_cheap(3600 * hour + 1800)]
    before = runs["at once"].worker_hours
    # The peak: the quarter of the expensive hours in which most workers are busy if all starts at once.
    peak = sorted(expensive, key=lambda hour: -before[hour])[: len(expensive) // 4]
    print(
        f"| {len(jobs):,} jobs, {WORKERS} workers | worker-hours | in expensive hours | at the peak | busiest hour"
        " | late |\n|---|---:|---:|---:|---:|---:|"
    )
    for name, run in runs.items():
        spent = run.worker_hours
        sums = (sum(spent), sum(spent[hour] for hour in expensive), sum(spent[hour] for hour in peak))
        busiest = max(spent[hour] for hour in expensive)
        print(f"| {name} | {sums[0]:.0f} | {sums[1]:.0f} | {sums[2]:.0f} | {busiest:.1f} | {run.late} |")
    after = runs["cheap hours"]
    saved = 1 - sum(after.worker_hours[hour] for hour in peak) / sum(before[hour] for hour in peak)
    print(f"\nat the peak {saved:.0%} fewer worker-hours; {after.late} deadlines missed")
    if asked.svg is not None:
        asked.svg.write_text(drawing(before[:HOURS], after.worker_hours[:HOURS]), encoding="utf-8")
    return int(after.late > 0 or saved < asked.least)


def drawing(before: Sequence[float], after: Sequence[float]) -> str:
    """Return busy workers in each hour as SVG: at once filled, in cheap hours a line, cheap hours shaded."""
    left, top, width, height = 50, 50, 840, 220
    step, base, most = width / HOURS, top + height, WORKERS
    shapes = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 320" font-family="sans-serif" font-size="12">'
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="50" y="20" font-weight="bold">Busy workers in each hour of the week</text>',
        '<rect x="50" y="29" width="12" height="12" fill="#c9d6df"/><text x="67" y="39">all jobs at once</text>',
        '<path d="M180,35 h18" stroke="#c1121f" stroke-width="2"/><text x="203" y="39">with start_after cheap</text>',
        '<rect x="360" y="29" width="12" height="12" fill="#e3f1e5"/><text x="377" y="39">cheap hours</text>',
    ]
    for hour in range(HOURS):
        x = left + step * hour
        if is_cheap(3600 * hour + 1800):
            shapes.append(f'<rect x="{x:.1f}" y="{top}" width="{step + 0.1:.1f}" height="{height}" fill="#e3f1e5"/>')
        high = height * before[hour] / most
        shapes.append(
            f'<rect x="{x:.1f}" y="{base - high:.1f}" width="{step + 0.1:.1f}" height="{high:.1f}" fill="#c9d6df"/>'
        )
    path = f"M{left},{base}" + "".join(
        f" V{base - height * busy / most:.1f} H{left + step * (hour + 1):.1f}" for hour, busy in enumerate(after)
    )
    shapes.append(f'<path d="{path}" fill="none" stroke="#c1121f" stroke-width="1.5"/>')
    for number in range(0, most + 1, 4):
        y = base - height * number / most
        shapes.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{number}</text>')
        shapes.append(f'<path d="M{left},{y:.1f} h{width}" stroke="#999" stroke-width="0.3"/>')
    for number, day in enumerate(("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")):
        shapes.append(
            f'<text x="{left + step * (24 * number + 12):.1f}" y="{base + 20}" text-anchor="middle">{day}</text>'
        )
    return "\n".join([*shapes, "</svg>\n"])


if __name__ == "__main__":
    sys.exit(main())
