"""``make scoreboard``: what becomes of the same jobs under the same faults, with Headrace and with what others use.

Each contestant in turn, and in each round, gets the same orders and the same schedule of faults, both from the round's
seed, and fresh servers. A round goes on until every job has ended, or ``--quiet`` seconds after the last fault and the
last order. The model is a server of its own, which no fault touches and which witnesses the work (``model_server``).

Prints a table and, as its last line, JSON; ``--save`` also makes a drawing. Exits 1 if Headrace lost or failed a job,
gave a wrong answer or a stream with a hole, or if nothing was killed.
"""

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.queue.contestants import DoesNotRun, wait_until_answering
from benchmarks.queue.services import Services, running_services
from benchmarks.scoreboard.contestants import CONTESTANTS, Contestant, Running
from benchmarks.scoreboard.judge import judge
from benchmarks.scoreboard.load import Load, orders
from benchmarks.scoreboard.nemesis import Kind, Nemesis, schedule
from benchmarks.scoreboard.report import drawing, table
from benchmarks.venvs import CannotInstall, versions
from headrace.store.child_process import Child, Command
from headrace.store.errors import HeadraceError
from headrace.store.ports import free_port

_TICK_S = 0.05
_WARM_S = 20.0
ROOT = Path(__file__).parents[2]

console = Console(stderr=True, log_path=False, width=150)

Row = dict[str, Any]


def play(contestant: Contestant, seed: int, args: argparse.Namespace) -> Row:
    """Return one round of the contestant. Raises DoesNotRun, CannotInstall or HeadraceError if it cannot be started."""
    with running_services() as services, _model(services) as (model_port, witness):
        with contestant.run(services, model_port, console.log, args.apis) as running:
            _warm_up(running)
            load = Load(running.caller, list(orders(seed, args.rate, args.seconds)))
            nemesis = Nemesis(schedule(seed, args.seconds), running.workers, running.doors, services)
            thread = threading.Thread(target=load.run, name="load")
            before = os.getloadavg()[0]
            thread.start()
            try:
                over_at = _drive(load, nemesis, running, args.quiet)
            finally:
                load.leave()
                thread.join()
        score = judge(load.log, map(json.loads, witness.read_text().splitlines()), over_at)
        if args.keep:
            _keep(args.keep / f"{contestant.name}-{seed}", services, load)
        machine_load = [round(each, 1) for each in (before, os.getloadavg()[0])]
        return {**asdict(score), "seed": seed, "struck": dict(nemesis.struck), "machine_load": machine_load}


@contextmanager
def _model(services: Services) -> Iterator[tuple[int, Path]]:
    """Run the model server; yield its port and its log."""
    port, log = free_port("127.0.0.1", 0), services.folder / "witness.jsonl"
    argv = [sys.executable, "-m", "benchmarks.scoreboard.model_server", str(port), log]
    child = Child(Command("model", argv, services.folder / "model.log", cwd=ROOT))
    try:
        wait_until_answering(f"http://127.0.0.1:{port}/v1/models", [child])
        yield port, log
    finally:
        child.stop()


def _warm_up(running: Running) -> None:
    """Return when a short order of each worker's slots has ended, or after a while: some start slowly."""
    load = Load(running.caller, [replace(order, cancels=False, reads=False) for order in orders(0, 8, 2.0)])
    thread = threading.Thread(target=load.run)
    thread.start()
    deadline = time.monotonic() + _WARM_S + 10
    while (load.is_submitting or load.log.num_open) and time.monotonic() < deadline:
        time.sleep(0.2)
    load.leave()
    thread.join()
    if not any(told.state == "succeeded" for told in load.log.jobs):
        raise DoesNotRun(f"no job ended before the faults: {len(load.log.jobs)} accepted, {load.log.refused} refused")


def _drive(load: Load, nemesis: Nemesis, running: Running, quiet_s: float) -> float:
    """Break and mend until all is over and quiet; return when the faults and the orders were over."""
    over_at: float | None = None
    while True:
        for strike in nemesis.tend():
            console.log(f"  {strike.at_s:6.1f} s  {strike.kind}")
        for target in (*running.workers, *running.doors):
            target.tend()
        if over_at is None and nemesis.is_done and not load.is_submitting:
            over_at = time.monotonic()
        if over_at is not None and (not load.log.num_open or time.monotonic() - over_at > quiet_s):
            return over_at
        time.sleep(_TICK_S)


def _keep(folder: Path, services: Services, load: Load) -> None:
    """Copy logs and records for whoever looks for a cause."""
    folder.mkdir(parents=True, exist_ok=True)
    for log in (*services.folder.glob("*.log"), *services.folder.glob("*.jsonl"), *services.folder.glob("home/logs/*")):
        (folder / log.name).write_bytes(log.read_bytes())
    (folder / "told.json").write_text(json.dumps([asdict(told) for told in load.log.jobs], indent=1))


def added(rounds: list[Row]) -> Row:
    """Return a contestant's rounds as one row: numbers are added, times of cancels joined, the latest last end kept."""
    row: Row = {key: sum(each[key] for each in rounds) for key, value in rounds[0].items() if isinstance(value, int)}
    row["cancel_s"] = sorted(stop for each in rounds for stop in each["cancel_s"])
    row["cancel_p50_s"] = round(statistics.median(row["cancel_s"]), 2) if row["cancel_s"] else None
    row["last_end_s"] = [each["last_end_s"] for each in rounds]
    del row["seed"]
    return row


def broken(rounds: Mapping[str, list[Row]]) -> list[str]:
    """Return a sentence for each reason to fail."""
    sentences = [
        f"nothing was killed under {name}"
        for name, played in rounds.items()
        if not all(each["struck"].get(Kind.KILL_WORKER) for each in played)
    ]
    ours = added(rounds["headrace"]) if rounds.get("headrace") else {}
    keys = ("lost", "failed", "wrong", "holes")
    return sentences + [f"Headrace: {ours[key]} {key}" for key in keys if ours.get(key)]


def main() -> None:
    args = _arguments()
    wanted = [contestant for contestant in CONTESTANTS if args.only is None or contestant.name in args.only]
    rounds: dict[str, list[Row]] = {}
    refusals: dict[str, str] = {}
    with suppress(KeyboardInterrupt):  # what was played until then is shown
        for seed, contestant in product(range(args.seed, args.seed + args.rounds), wanted):
            if contestant.name in refusals:
                continue
            console.log(f"{contestant.what}, seed {seed}")
            try:
                row = play(contestant, seed, args)
            except (DoesNotRun, CannotInstall, HeadraceError, OSError) as error:
                refusals[contestant.name] = str(error)
                console.log(f"  could not run: {error}", markup=False)
                continue
            rounds.setdefault(contestant.name, []).append(row)
            if args.save:
                args.save.with_suffix(".json").write_text(json.dumps(rounds))
            console.log(json.dumps(row), markup=False)
    played = {contestant: added(rounds[contestant.name]) for contestant in wanted if contestant.name in rounds}
    print(table(played))
    for name, why in refusals.items():
        print(f"{name} could not run: {why}")
    sentences = broken(rounds)
    for sentence in sentences:
        console.print(f"broken: {sentence}", style="red", markup=False)
    found = {name: versions(name) for name in dict.fromkeys(each.venv for each in played if each.venv)}
    report = {
        "benchmark": "scoreboard",
        **{key: getattr(args, key) for key in ("seed", "rounds", "seconds", "rate", "quiet")},
        "cpus": os.cpu_count(),
        "contestants": rounds,
        "refused": refusals,
        "versions": {**found, "headrace": version("headrace")},
    }
    if args.save:
        args.save.with_suffix(".svg").write_text(drawing(played))
        args.save.with_suffix(".json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report))
    sys.exit(1 if sentences else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoreboard", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first round; each further one has the next")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=45.0, help="how long jobs come and things break")
    parser.add_argument("--rate", type=float, default=6.0, help="jobs a second")
    parser.add_argument("--apis", type=int, default=1, help="APIs of each contestant, asked by turns")
    parser.add_argument("--quiet", type=float, default=45.0, help="seconds of peace before a job counts as lost")
    parser.add_argument("--only", nargs="+", choices=[contestant.name for contestant in CONTESTANTS])
    parser.add_argument("--save", type=Path, help="write the drawing and the report to this path with .svg and .json")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy each round's logs and records there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
