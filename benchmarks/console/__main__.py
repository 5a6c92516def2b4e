"""``python -m benchmarks.console``: first view and event-loop lag, with 100,000 stored and 500 running jobs.

A whole local stack on the fake model. Prints the figures as JSON; exits 1 if a goal is missed. ``--pictures FOLDER``
makes the pictures of docs/console.md instead, on a smaller and livelier stack.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.console import load, measure, pictures
from benchmarks.console.chromium import find_chromium, running_chromium
from headrace.cli.local.stack import running_stack
from headrace.store.settings import load_settings

console = Console(stderr=True)

STORED, RUNNING, CONSOLES = 100_000, 500, 10
FIRST_VIEW_MS, LAG_MS = 1000.0, 50.0
_NO_LIMIT = {"HEADRACE_REQUESTS_PER_MINUTE": "10000000", "HEADRACE_TOKENS_PER_MINUTE": "1000000000"}


def _measure(home: Path, chromium: str, views: int, seconds: float) -> dict[str, Any]:
    settings = load_settings().model_copy(update={"home": home, "api_port": 0, "flower_port": 0})
    slots = {"HEADRACE_MAX_SLOTS": str(RUNNING // 2), "HEADRACE_FAKE_STEP_MS": "500"}
    changes = {**_NO_LIMIT, **slots, "HEADRACE_KV_POOL_TOKENS": str(1 << 21)}
    with running_stack(settings, [load.MODEL] * 2, console.log, changes) as stack:
        load.store_jobs(load.database_url(home), "default", STORED)
        console.log(f"{STORED:,} jobs stored")
        load.run_many(stack.api_url, [stack.api_key], RUNNING, 6000)
        console.log(f"{RUNNING} jobs run")
        with running_chromium(chromium) as browser:
            first = [measure.first_views(browser, stack.api_url, stack.api_key) for _ in range(views)]
        console.log(f"first views: {first}")
        lags = {n: measure.lag(stack.api_url, stack.api_key, n, seconds) for n in (0, 1, CONSOLES)}
    medians = {name: round(statistics.median(view[name] for view in first)) for name in first[0]}
    return {"stored": STORED, "running": RUNNING, "first_view_ms": medians, "views": first, "consoles": lags}


def main() -> int:
    """Measure, or make the pictures; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.console", description=__doc__)
    parser.add_argument("--pictures", type=Path, help="make the pictures in this folder, and measure nothing")
    parser.add_argument("--views", type=int, default=5, help="how often each page is opened")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the lag is measured with each number")
    options = parser.parse_args()
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit("no Chromium on this machine: install the package chromium")
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:
        if options.pictures is not None:
            pictures.make(Path(folder), chromium, options.pictures, console.log)
            return 0
        found = _measure(Path(folder), chromium, options.views, options.seconds)
    print(json.dumps({"benchmark": "console", "cpus": os.cpu_count(), "load": os.getloadavg()[0], **found}))
    is_quick = max(found["first_view_ms"].values()) < FIRST_VIEW_MS
    return 0 if is_quick and found["consoles"][CONSOLES]["p99_ms"] <= LAG_MS else 1


if __name__ == "__main__":
    sys.exit(main())
