"""The report of a run: a JSON line, a small table, and files for the documents."""

import json
import platform
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.checker import Findings, stale_writes
from tests.chaos.flow_rules import num_called
from tests.chaos.history import Attempt, History
from tests.chaos.streams import read_stream

Json = dict[str, Any]
BUILD = Path(__file__).parents[2] / "build" / "reliability"
_SHOWN = 5


def report_of(history: History, findings: Findings, *, seed: int, duration_s: float, **more: object) -> Json:
    """Return the report line's fields."""
    hooks = Counter(event["id"] for event in history.hooks)
    broken = findings.broken
    readings = [read_stream(event["events"]) for event in history.of_client("stream")]
    return {
        **more,
        "seed": seed,
        "versions": versions(),
        "duration_s": round(duration_s, 1),
        "submitted": len(history.of_client("order")),
        "accepted": len(history.of_client("accepted")),
        "refused": len(history.of_client("refused")),
        "gave_up": len(history.of_client("gave_up")),
        "server_errors": dict(Counter(str(event["status"]) for event in history.of_client("server_error"))),
        "states": dict(Counter(job.state for job in history.jobs)),
        "flows": {
            "jobs": dict(Counter(job.state for job in history.jobs if job.is_flow)),
            "steps": dict(Counter(step.state for step in history.steps)),
            "steps_repeated": sum(step.attempt > 1 for step in history.steps),
        },
        "calls": {
            "chats": num_called(history),
            "made": len(history.calls),
            "repeated": len(history.calls) - len({call["key"] for call in history.calls}),
        },
        "strikes": dict(sorted(Counter(event["fault"] for event in history.of_nemesis("strike")).items())),
        "kills": dict(findings.kills),
        "signals": dict(Counter(f"{e['signal']} {e['member']}" for e in history.of_nemesis("signal"))),
        "wipes": len(history.of_nemesis("wipe")),
        "not_run": sorted({f"{event['fault']}: {event['why']}" for event in history.of_nemesis("not_run")}),
        "duplicate_deliveries": sum(1 for one in history.attempts if one.epoch > 1),
        "stale_writes_refused": stale_writes(history),
        "leases_lost": history.log_counts["lease_lost"],
        **{name: broken.get(name, 0) for name in findings.violations},
        "streams": {
            "read": len(readings),
            "cuts": sum(event["cuts"] for event in history.of_client("stream")),
            "restarts": sum(one.num_restarts for one in readings),
            "gaps": sum(len(one.broken) for one in readings),
        },
        "recovery_s": spread([after for after, _ in recoveries(history)]),
        "resumed_s": spread([after for _, after in recoveries(history) if after is not None]),
        "webhook_calls": {"unique": len(hooks), "duplicate": sum(hooks.values()) - len(hooks)},
        "broken": broken,
    }


def versions() -> Json:
    """What ran."""
    return {"headrace": version("headrace"), "python": platform.python_version(), "celery": version("celery")}


def recoveries(history: History) -> Iterator[tuple[float, float | None]]:
    """Yield for each job of a dead or stopped worker the seconds until its requeue and until its next run."""
    died_at = {str(event["pid"]): event["t"] for event in history.of_nemesis("exit") if event["member"] == "worker"}
    for event in history.of_nemesis("signal"):
        if event["member"] == "worker" and event["signal"] in ("SIGKILL", "SIGSTOP"):
            died_at[str(event["pid"])] = event["t"]
    following = _following(history.attempts)
    for one in history.attempts:
        fell_at = died_at.get(one.pid)
        if one.outcome == "worker_lost" and fell_at is not None and one.ended_at and one.ended_at > fell_at:
            later = following.get((one.job, one.epoch))
            yield one.ended_at - fell_at, None if later is None else later.started_at - fell_at


def _following(attempts: Sequence[Attempt]) -> dict[tuple[str, int], Attempt]:
    of_job = defaultdict(list)
    for one in attempts:
        of_job[one.job].append(one)
    pairs = {}
    for ours in of_job.values():
        ours.sort(key=lambda one: one.epoch)
        pairs |= {(one.job, one.epoch): later for one, later in pairwise(ours)}
    return pairs


def spread(values: Sequence[float]) -> Json:
    """Return the median, the 95th percentile and the most."""
    if not values:
        return {"n": 0, "p50": None, "p95": None, "max": None}
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {
        "n": len(ordered),
        "p50": round(statistics.median(ordered), 2),
        "p95": round(p95, 2),
        "max": round(ordered[-1], 2),
    }


def show(report: Json, findings: Findings, console: Console) -> None:
    """Print the table and the first violations of each kind."""
    table = Table(
        title=f"{report.get('run', 'chaos')}, seed {report['seed']}, {report['duration_s']} s", show_header=False
    )
    for name, value in report.items():
        if name not in {"versions", "seed", "duration_s"}:
            table.add_row(name.replace("_", " "), _cell(value))
    console.print(table)
    for name, found in findings.violations.items():
        for line in found[:_SHOWN]:
            console.print(f"BROKEN {name}: {line}", style="red", markup=False)
        if len(found) > _SHOWN:
            console.print(f"BROKEN {name}: and {len(found) - _SHOWN} more", style="red", markup=False)


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def save(report: Json, name: str) -> None:
    """Write ``build/reliability/<name>.json``."""
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / f"{name}.json").write_text(json.dumps(report) + "\n")
