"""A whole Headrace for an hour, with a kill every few minutes: ``python -m benchmarks.cluster_soak --minutes 60``.

Two APIs, two workers with the model without weights, two dispatchers, Postgres and Valkey. Customers submit a few jobs
a second; contents and rows are kept for minutes only, so that a table which still grows stands out. The second of each
kind of process, Redis and Postgres are killed in turn; the first of each kind lives for the whole time, so that its
memory can be compared. Prints what grew, and as its last line JSON; writes samples and a picture; exits 1 if a job was
lost or something grew that should not.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.cluster_soak.drawing import Panel, svg
from benchmarks.cluster_soak.growth import growths, unexpected
from benchmarks.cluster_soak.samples import Sample, sample_of
from tests.chaos.cluster import SHORT_TIMES, Shape
from tests.chaos.history import History
from tests.chaos.journal import now_s, read_journal
from tests.chaos.load import Order, orders
from tests.chaos.soak import Run, running, wait_for_the_end, what_is_left

console = Console(stderr=True, width=120)

# Times after which contents, then rows, are deleted: the tables are full after a few minutes. A customer whose stream
# is cut after every third event took 150 s to read it on a busy machine.
KEPT = {
    "RESULT_TTL_S": "300",
    "DELIVERY_TTL_S": "300",
    "RECORD_TTL_S": "420",
    "IDEMPOTENCY_TTL_S": "420",
    "STREAM_TTL_S": "120",
}
VICTIMS = ("worker-2", "api-2", "redis", "dispatcher-2", "worker-2", "postgres")
SURVIVORS = ("api-1", "worker-1", "dispatcher-1", "redis")
TABLES = ("jobs", "job_streams", "job_events", "attempts", "webhook_deliveries", "idempotency_keys", "usage_ledger")
_QUIET_S = 150.0


def followed(wanted: Iterator[Order]) -> Iterator[Order]:
    """The same orders, each read to its end by its customer: rows are deleted before the run is over."""
    return (replace(one, follow="poll") if one.follow == "forget" else one for one in wanted)


def kill(run: Run, name: str) -> None:
    """End a process or a server without warning; the cluster starts it again."""
    if name in ("redis", "postgres"):
        pids = run.cluster.server_pids(name)
        os.kill(pids[0], signal.SIGKILL)
        run.cluster.journal.write("signal", member=name, name=name, pid=pids[0], signal="SIGKILL")
    else:
        run.cluster.signal(run.cluster.find(name), signal.SIGKILL)


def soak(run: Run, options: argparse.Namespace) -> tuple[list[tuple[float, Sample]], list[tuple[float, str]]]:
    """Run load and kills for the time; return the samples and the kills, each with seconds since the start."""
    began = time.monotonic()
    victims = cycle(VICTIMS)
    samples: list[tuple[float, Sample]] = []
    kills: list[tuple[float, str]] = []
    while (now := time.monotonic() - began) < options.minutes * 60:
        if now >= (len(kills) + 1) * options.kill_every_s:
            kills.append((now, next(victims)))
            kill(run, kills[-1][1])
        if now >= len(samples) * options.sample_every_s:
            samples.append((now, sample_of(run.cluster)))
        run.turn()
    return samples, kills


def outcome(events: History, left: dict[str, int]) -> dict[str, Any]:
    """Count jobs by what their customers saw. ``lost``: accepted, and no end was seen."""
    accepted = {event["job"] for event in events.of_client("accepted")}
    seen = {event["job"]: event["status"] for event in events.of_client("seen")}
    return {
        "submitted": len(events.of_client("order")),
        "accepted": len(accepted),
        "refused": len(events.of_client("refused")),
        "gave_up": len(events.of_client("gave_up")),
        "client_errors": len(events.of_client("client_error")),
        "ends": dict(Counter(seen.values())),
        "lost": len(accepted - seen.keys()),
        "left": left,
    }


def panels() -> list[Panel]:
    """Return the curves of the picture."""

    def of(kind: str, names: tuple[str, ...]) -> dict[str, str]:
        return {name: f"{kind}/{name}" for name in names}

    return [
        Panel("memory of processes that were not killed, MiB", of("memory MiB", SURVIVORS[:3])),
        Panel("memory of processes that were killed, MiB", of("memory MiB", ("api-2", "worker-2", "dispatcher-2"))),
        Panel("file descriptors", of("descriptors", ("api-1", "worker-1", "dispatcher-1", "redis"))),
        Panel("connections", of("connections", ("postgres", "redis"))),
        Panel("Redis: keys", of("keys", ("redis",))),
        Panel("tables with TOAST, KiB", of("table KiB", TABLES)),
        Panel("indexes, KiB", of("index KiB", TABLES)),
    ]


def main() -> int:
    """Run, print and write; return the exit code."""
    options = _arguments()
    shape = Shape(settings={**SHORT_TIMES, **KEPT})
    options.folder.mkdir(parents=True, exist_ok=True)
    started_at = now_s()
    with running("cluster-soak", seed=options.seed, say=_say, shape=shape) as run:
        run.let_in(options.rate, followed(orders(options.seed, len(run.cluster.tenants))))
        samples, kills = soak(run, options)
        (options.folder / "samples.json").write_text(json.dumps({"samples": samples, "kills": kills}))
        wait_for_the_end(run, _QUIET_S)
        events = History(client=read_journal(run.cluster.folder / "client.jsonl"))
        counts = outcome(events, what_is_left(run.cluster))
    (options.folder / "cluster-soak.svg").write_text(svg(samples, panels(), kills))
    found = growths(samples)
    grew = unexpected(found)
    for one in found:
        if one.kind not in ("table KiB", "index KiB") or one.peak > 1024:
            mark = "" if one.is_flat else (" by design" if one.is_by_design else " GREW")
            console.print(f"{one.name:45} {one.second:9.1f} {one.last:9.1f}  peak {one.peak:9.1f}{mark}", markup=False)
    broken = [f"lost: {counts['lost']}"] * bool(counts["lost"]) + [f"left: {counts['left']}"] * bool(counts["left"])
    broken += grew if options.minutes >= options.judged_minutes else []
    report = {
        "benchmark": "cluster_soak",
        "minutes": round((now_s() - started_at) / 60, 1),
        "rate": options.rate,
        "kills": dict(Counter(name for _, name in kills)),
        "load_average": os.getloadavg(),
        **counts,
        "growth": [asdict(one) for one in found],
        "broken": broken,
    }
    (options.folder / "report.json").write_text(json.dumps(report, indent=1))
    print(json.dumps({key: value for key, value in report.items() if key != "growth"}))
    return 1 if broken else 0


def _say(sentence: str) -> None:
    console.print(sentence, style="dim", markup=False, highlight=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster_soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=2.0, help="jobs submitted a second")
    parser.add_argument("--kill-every-s", type=float, default=180.0)
    parser.add_argument("--sample-every-s", type=float, default=15.0)
    parser.add_argument("--judged-minutes", type=float, default=30.0, help="in a shorter run growth is only printed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("build/cluster-soak"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
