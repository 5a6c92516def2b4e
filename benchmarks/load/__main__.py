"""``make load``: AIPerf against the OpenAI face of a whole Headrace, Poisson and bursty, three tasks of two tenants.

Starts a stack on SmolLM2 and MiniLM with defaults, and for each kind of arrivals three AIPerfs at once: one tenant
chats, the other asks for completions and for embeddings. Prints a table, writes AIPerf's reports and a picture, and
prints as its last line JSON. Exits 1 if a request failed or if an AIPerf gave no report: at these rates none should.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks.load.aiperf import ARRIVALS, NoReport, Stream, command, read, start
from benchmarks.load.drawing import svg
from benchmarks.path import cpu_name
from benchmarks.venvs import CannotInstall, environment, versions
from headrace.cli.local.home import Home
from headrace.cli.local.stack import Stack, running_stack
from headrace.store.db.database import Database
from headrace.store.settings import load_settings
from headrace.store.tenants.api_keys import create_key, create_tenant

console = Console(stderr=True, width=150)
CHAT, EMBEDDINGS = "smollm2", "minilm"
STREAMS = (
    Stream("amber", "chat", CHAT, rate=0.5, input_tokens=60, output_tokens=32),
    Stream("birch", "completions", CHAT, rate=0.3, input_tokens=60, output_tokens=24),
    Stream("birch", "embeddings", EMBEDDINGS, rate=2.0, input_tokens=40),
)
_SCOPES = ["jobs:read", "jobs:write"]
_EXTRA_S = 300.0
_TICK_S = 0.5

Row = dict[str, Any]


def tenant_keys(home: Path) -> dict[str, str]:
    """Make a key for each tenant of the streams."""
    record = Home(home).record()
    if record is None:
        raise SystemExit("the stack left no record of its services")
    db = Database(record.database_url, pool_size=1, application_name="load")
    try:
        names = sorted({stream.tenant for stream in STREAMS})
        mark = f"{time.monotonic_ns():x}"
        return {
            name: create_key(db, create_tenant(db, f"{name}-{mark}"), name, _SCOPES, actor="load") for name in names
        }
    finally:
        db.close()


def measured(stack: Stack, keys: dict[str, str], arrivals: str, options: argparse.Namespace, bin_: Path) -> list[Row]:
    """Run one AIPerf for each stream at the same time; return a row for each."""
    models = options.home.absolute() / "models"
    running = []
    for seed, stream in enumerate(STREAMS):
        stream = stream_at(stream, options.times)
        folder = options.folder.absolute() / arrivals / stream.name.replace(" ", "-")
        arguments = command(
            stream,
            arrivals,
            url=stack.api_url,
            key=keys[stream.tenant],
            tokenizer=models / stream.model,
            folder=folder,
            seconds=options.seconds,
            seed=seed,
        )
        running.append((stream, folder, start(bin_ / "aiperf", arguments, folder)))
    until = time.monotonic() + options.seconds + _EXTRA_S
    while any(process.poll() is None for _, _, process in running) and time.monotonic() < until:
        time.sleep(_TICK_S)
    rows = []
    for stream, folder, process in running:
        process.kill()
        process.wait()
        rows.append({"arrivals": arrivals, **asdict(stream), **outcome(folder)})
    return rows


def stream_at(stream: Stream, times: float) -> Stream:
    """The same stream at another rate."""
    return Stream(**{**asdict(stream), "rate": round(stream.rate * times, 3)})


def outcome(folder: Path) -> Row:
    """The figures of AIPerf's report, or why there are none."""
    try:
        return read(folder)
    except NoReport as error:
        return {"answered": 0, "failed": 0, "errors": {}, "no_report": str(error)}


def table_of(rows: list[Row]) -> Table:
    """The table for the documents."""
    table = Table(box=MARKDOWN)
    columns = (
        "arrivals",
        "tenant",
        "task",
        "asked a second",
        "answered",
        "failed",
        "first token p50 / p95",
        "request p50 / p95",
    )
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        first, whole = (
            " / ".join(_ms(row.get(f"{name}_{at}_ms")) for at in ("p50", "p95"))
            for name in ("time_to_first_token", "request_latency")
        )
        cells = (row[name] for name in ("arrivals", "tenant", "task", "rate", "answered", "failed"))
        table.add_row(*(str(cell) for cell in cells), first, whole)
    return table


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} ms"


def main() -> int:
    """Run, print and write; return the exit code."""
    options = _arguments()
    try:
        bin_ = environment("aiperf", console.log)
    except CannotInstall as error:
        console.print(f"AIPerf cannot be installed: {error}", markup=False)
        return 1
    settings = load_settings().model_copy(update={"home": options.home, "api_port": 0, "flower_port": 0})
    rows: list[Row] = []
    loads: list[float] = []
    with running_stack(settings, [CHAT, EMBEDDINGS], console.log) as stack:
        keys = tenant_keys(options.home)
        for arrivals in options.arrivals:
            console.log(f"{arrivals}: {options.seconds:g} s")
            rows += measured(stack, keys, arrivals, options, bin_)
            loads.append(round(os.getloadavg()[0], 1))
    console.print(table_of(rows))
    (options.folder / "load.svg").write_text(svg(rows))
    report = {"benchmark": "load", "machine": cpu_name(), "cpus": os.cpu_count(), "load_averages": loads, "rows": rows}
    print(json.dumps(report | {"versions": versions("aiperf"), "seconds": options.seconds}))
    return 1 if any(row["failed"] or "no_report" in row for row in rows) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each kind of arrivals")
    parser.add_argument("--arrivals", nargs="+", choices=list(ARRIVALS), default=list(ARRIVALS))
    parser.add_argument("--times", type=float, default=1.0, help="multiply every rate")
    parser.add_argument("--home", type=Path, default=load_settings().home, help="folder of the stack's data")
    parser.add_argument("--folder", type=Path, default=Path("build/load"), help="for the reports and the picture")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
