"""``make chaos-compare``: lost, stuck and doubled jobs of stock Celery and of Headrace, under the same faults.

One seed gives one load and one schedule of faults (workers killed and stopped, Redis restarted, wiped and cut off);
each contestant gets both, one after the other, from its own fresh Redis. A table, and as the last line JSON. Exits 1
if Headrace lost, doubled or left a job unended, or if the faults hit nothing.
"""

import argparse
import json
import os
import sys
import threading
import time
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks.compare.checker import judge
from benchmarks.compare.client import Client
from benchmarks.compare.contestants import CONTESTANTS, Contestant
from benchmarks.compare.nemesis import Kind, Nemesis, schedule
from benchmarks.queue.contestants import DoesNotRun
from benchmarks.queue.services import running_services
from benchmarks.venvs import CannotInstall, versions
from headrace.store.errors import HeadraceError

_TICK_S = 0.05
_KILLS = (Kind.KILL_WORKER, Kind.KILL_ONE)

console = Console(stderr=True, log_path=False)
if not console.is_terminal:
    console.width = 150

Row = dict[str, Any]


def compare(contestant: Contestant, args: argparse.Namespace) -> Row | str:
    """Return the contestant's row, or why it could not run."""
    try:
        with running_services() as services, contestant.run(services, console.log) as running:
            client = Client(running.port, running.dialect, seed=args.seed, rate=args.rate, seconds=args.seconds)
            nemesis = Nemesis(schedule(args.seed, args.seconds), running.workers, services.valkey)
            thread = threading.Thread(target=client.run, name="client")
            began = time.monotonic()
            thread.start()
            try:
                quiet_from = _drive(client, nemesis, running.workers, args.quiet)
            finally:
                client.leave()
                thread.join()
            verdict = judge(client.log, running.evidence(client.log))
            return {
                **asdict(verdict),
                "struck": dict(nemesis.struck),
                "worker_restarts": sum(worker.num_restarts for worker in running.workers),
                "quiet_s": round(time.monotonic() - quiet_from, 1),
                "duration_s": round(time.monotonic() - began, 1),
            }
    except (DoesNotRun, CannotInstall, HeadraceError) as error:
        return str(error)


def _drive(client: Client, nemesis: Nemesis, workers: Any, quiet_s: float) -> float:
    """Break and mend until all is over and quiet; return when the quiet began."""
    quiet_from: float | None = None
    while True:
        for strike in nemesis.tend():
            console.log(f"  {strike.at_s:6.1f} s  {strike.kind}")
        for worker in workers:
            worker.tend()
        if quiet_from is None and nemesis.is_done and not client.is_submitting:
            quiet_from = time.monotonic()
        if quiet_from is not None and (not client.log.num_open or time.monotonic() - quiet_from > quiet_s):
            return quiet_from
        time.sleep(_TICK_S)


def broken(rows: dict[str, Row], refusals: dict[str, str]) -> list[str]:
    """Return a sentence for each reason to fail."""
    sentences = [f"{name} could not run: {why}" for name, why in refusals.items()]
    for name, row in rows.items():
        if not sum(row["struck"].get(kind, 0) for kind in _KILLS):
            sentences.append(f"nothing was killed under {name}")
    ours = rows.get("headrace", {})
    sentences += [f"Headrace: {ours[key]} {key}" for key in ("lost", "stuck", "duplicate_terminal") if ours.get(key)]
    if ours and not ours["succeeded"]:
        sentences.append("Headrace: no job succeeded")
    return sentences


def _table(rows: dict[str, Row], args: argparse.Namespace) -> Table:
    table = Table(title=f"The same faults, seed {args.seed}, {args.seconds:g} s at {args.rate:g} jobs/s")
    table.add_column("")
    headings = {
        "accepted": "accepted",
        "refused": "refused",
        "succeeded": "succeeded",
        "failed": "failed",
        "lost": "lost",
        "stuck": "stuck",
        "ran_twice": "ran twice",
        "duplicate_terminal": "ended twice",
    }
    for heading in headings.values():
        table.add_column(heading, justify="right")
    table.add_column("s to the end p50 / p95 / max", justify="right")
    for contestant in CONTESTANTS:
        if (row := rows.get(contestant.name)) is not None:
            times = " / ".join(f"{seconds:g}" for seconds in row["to_end_s"].values())
            table.add_row(contestant.what, *(str(row[key]) for key in headings), times)
    return table


def main() -> None:
    args = _arguments()
    wanted = [contestant for contestant in CONTESTANTS if args.only is None or contestant.name in args.only]
    rows: dict[str, Row] = {}
    refusals: dict[str, str] = {}
    for contestant in wanted:
        console.log(contestant.what)
        row = compare(contestant, args)
        if isinstance(row, str):
            refusals[contestant.name] = row
        else:
            rows[contestant.name] = row
    sentences = broken(rows, refusals)
    table = _table(rows, args)
    if args.markdown:
        table.box = MARKDOWN
    console.print(table)
    for sentence in sentences:
        console.print(f"broken: {sentence}", style="red", markup=False)
    print(json.dumps(_report(rows, sentences, args)))
    sys.exit(1 if sentences else 0)


def _report(rows: dict[str, Row], sentences: list[str], args: argparse.Namespace) -> Row:
    known = {"headrace": version("headrace")}
    if any(name.startswith("celery") for name in rows):
        known |= versions("celery")
    return {
        "benchmark": "chaos-compare",
        "seed": args.seed,
        "seconds": args.seconds,
        "rate": args.rate,
        "quiet_s": args.quiet,
        "cpus": os.cpu_count(),
        "contestants": rows,
        "broken": sentences,
        "versions": known,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=75.0, help="how long jobs come and things break")
    parser.add_argument("--rate", type=float, default=12.0, help="jobs a second")
    parser.add_argument("--quiet", type=float, default=60.0, help="seconds of peace before a job counts as lost")
    parser.add_argument("--only", nargs="+", choices=[contestant.name for contestant in CONTESTANTS])
    parser.add_argument("--markdown", action="store_true", help="a table to paste into a document")
    return parser.parse_args()


if __name__ == "__main__":
    main()
