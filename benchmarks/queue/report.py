"""From turns to a table, a drawing, goals and one JSON object. Pure but for the printing."""

import datetime
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from statistics import median
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks.queue.contestants import CONTESTANTS, Contestant
from benchmarks.queue.turns import Options, Turn
from benchmarks.venvs import CannotInstall, versions

Found = dict[str, Any]

_BAR_CHARS = 44
_TIMES_A, _TIMES_B = 1.5, 2.5
_MOST_COMMITS_PER_JOB = 0.2
_MOST_SUBMIT_P99_MS = 50.0
_LAYERS = ("API", "worker", "dispatcher", "server", "Postgres", "Redis", "client")


def summary(turns: Sequence[Turn], refusals: dict[str, str], steady: Found | None, options: Options) -> Found:
    """Return everything that is worth keeping of a run."""
    rows = {}
    for contestant in CONTESTANTS:
        if mine := [turn for turn in turns if turn.contestant == contestant.name]:
            rows[contestant.name] = _row(mine)
    ours = rows.get("headrace")
    return {
        "benchmark": "queue",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} × {_cpu_name()}",
        "load_1m_after": round(os.getloadavg()[0], 2),
        **vars(options),
        "contestants": rows,
        "cannot_run": refusals,
        "headrace_times": {
            name: round(ours["jobs_per_s"] / row["jobs_per_s"], 2)
            for name, row in rows.items()
            if ours and row is not ours and row["jobs_per_s"]
        },
        "steady": steady,
        "versions": {"python": platform.python_version(), "headrace": version("headrace")} | _peer_versions(rows),
    }


def _row(turns: Sequence[Turn]) -> Found:
    """Return the medians of a contestant's rounds, and each round's jobs/s so that the spread can be seen."""
    measured = [turn.measured for turn in turns]
    names = ("jobs_per_s", "submit_p50_ms", "submit_p99_ms", "total_p50_ms", "total_p99_ms", "polls_per_job")
    row: Found = {name: round(median(getattr(each, name) for each in measured), 2) for name in names}
    row["jobs_per_s_all"] = [each.jobs_per_s for each in measured]
    row["jobs"] = sum(each.succeeded for each in measured)
    row["failed"] = sum(each.failed for each in measured)
    row["errors"] = {text: count for each in measured for text, count in each.errors.items()}
    row["client_cpu_share"] = round(median(each.client_cpu_s / max(each.seconds, 0.001) for each in measured), 3)
    row["cpu_us_per_job"] = _medians([turn.cpu_us_per_job for turn in turns], 0)
    row["per_job"] = _medians([turn.per_job for turn in turns], 3)
    return row


def _medians(columns: Sequence[dict[str, float]], digits: int) -> dict[str, float]:
    return {name: round(median(each[name] for each in columns), digits) for name in columns[0]}


def goals(found: Found) -> list[str]:
    """Return a sentence for each goal that this run missed; a goal without its contestant is not judged."""
    missed = []
    for prefix, times in (("a-", _TIMES_A), ("b-", _TIMES_B)):
        ratios = [ratio for name, ratio in found["headrace_times"].items() if name.startswith(prefix)]
        if ratios and min(ratios) < times:
            missed.append(f"{min(ratios)} × ({prefix[0]}), the goal is {times} ×")
    if (ours := found["contestants"].get("headrace")) is not None:
        commits = ours["per_job"]["write_commits"]
        if commits > _MOST_COMMITS_PER_JOB:
            missed.append(f"{commits} write commits a job, the goal is {_MOST_COMMITS_PER_JOB}")
        if ours["failed"] or ours["errors"]:
            missed.append(f"{ours['failed']} jobs failed, errors: {ours['errors']}")
    if (steady := found["steady"]) is not None:
        if steady["submit_p99_ms"] >= _MOST_SUBMIT_P99_MS:
            missed.append(
                f"submit p99 {steady['submit_p99_ms']} ms at {steady['rate']:.0f} jobs/s, the goal is < 50 ms"
            )
        if steady["succeeded"] != steady["jobs"]:
            missed.append(f"{steady['jobs'] - steady['succeeded']} jobs of the open loop did not succeed")
    return missed


def draw(console: Console, found: Found, wanted: Sequence[Contestant], *, markdown: bool) -> None:
    """Print the tables, for a terminal or to paste into a document, and the bars."""
    for table in (_speed_table(found, wanted), _cost_table(found, wanted)):
        if markdown:
            table.box = MARKDOWN
        console.print(table)
    most = max((row["jobs_per_s"] for row in found["contestants"].values()), default=1)
    for contestant in wanted:
        if (row := found["contestants"].get(contestant.name)) is not None:
            bar = "█" * max(1, round(_BAR_CHARS * row["jobs_per_s"] / most))
            console.print(f"{contestant.what:<42} {bar} {row['jobs_per_s']:.0f}", highlight=False)
    if (steady := found["steady"]) is not None:
        console.print(
            f"Open loop, {steady['rate']:.0f} jobs/s: submit p50 {steady['submit_p50_ms']} ms, "
            f"p99 {steady['submit_p99_ms']} ms; to the end p50 {steady['total_p50_ms']} ms, "
            f"p99 {steady['total_p99_ms']} ms; {steady['succeeded']} of {steady['jobs']} succeeded"
        )
    for name, why in found["cannot_run"].items():
        console.print(f"{name} could not run: {why}", markup=False)


def _speed_table(found: Found, wanted: Sequence[Contestant]) -> Table:
    title = f"{found['jobs']} jobs, {found['concurrency']} in flight, medians of {found['rounds']} rounds"
    table = Table(title=f"{title}, poll every {found['poll_ms']:g} ms")
    for heading in ("", "state kept in"):
        table.add_column(heading)
    for heading in ("jobs/s", "rounds", "Headrace is", "submit p50/p99 ms", "to the end p50/p99 ms", "polls/job"):
        table.add_column(heading, justify="right")
    for contestant in wanted:
        row = found["contestants"].get(contestant.name)
        if row is None:
            table.add_row(contestant.what, contestant.stores, "cannot run")
            continue
        times = found["headrace_times"].get(contestant.name)
        table.add_row(
            contestant.what,
            contestant.stores,
            f"{row['jobs_per_s']:.0f}",
            f"{min(row['jobs_per_s_all']):.0f}-{max(row['jobs_per_s_all']):.0f}",
            f"{times:.2f} ×" if times else "",
            f"{row['submit_p50_ms']:g} / {row['submit_p99_ms']:g}",
            f"{row['total_p50_ms']:g} / {row['total_p99_ms']:g}",
            f"{row['polls_per_job']:g}",
        )
    return table


def _cost_table(found: Found, wanted: Sequence[Contestant]) -> Table:
    rows = found["contestants"]
    layers = [layer for layer in _LAYERS if any(layer in row["cpu_us_per_job"] for row in rows.values())]
    table = Table(title="CPU µs a job by layer; Postgres's work a job")
    table.add_column("")
    for heading in (*layers, "all but client", "write commits", "statements"):
        table.add_column(heading, justify="right")
    for contestant in wanted:
        if (row := rows.get(contestant.name)) is None:
            continue
        cpu = row["cpu_us_per_job"]
        cells = [f"{cpu[layer]:.0f}" if layer in cpu else "" for layer in layers]
        whole = sum(us for layer, us in cpu.items() if layer != "client")
        counted = [f"{row['per_job'][name]:.2f}" if row["per_job"] else "" for name in ("write_commits", "statements")]
        table.add_row(contestant.what, *cells, f"{whole:.0f}", *counted)
    return table


def _peer_versions(rows: Found) -> Found:
    """Return what pip installed, by environment, of those that played."""
    found: Found = {}
    for name in {each.venv for each in CONTESTANTS if each.name in rows and each.venv}:
        try:
            found[name] = versions(name)
        except CannotInstall as error:
            found[name] = str(error)
    return found


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()
