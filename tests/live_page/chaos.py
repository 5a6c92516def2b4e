"""``python -m tests.live_page.chaos FOLDER``: read the Live page while a chaos run breaks things, and check it.

A tab has the page open all the time, as with an operator. Beside each look the same is read from the database. Prints
how often they agreed, and the sentences about workers that no fault explains. Takes about four minutes.
"""

import argparse
import re
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx2
import psycopg
from rich.console import Console

from benchmarks.console.chromium import find_chromium
from tests.chaos.cluster import Cluster, Shape
from tests.chaos.journal import read_journal
from tests.chaos.nemesis import KINDS
from tests.chaos.soak import break_things, database_of, running
from tests.live_page.watching import Look, Watcher, counts_right, flood_right, worker_names

_FLOOD_JOBS = 120
_ATTEMPTS = """
SELECT attempts.job_id FROM attempts JOIN jobs ON jobs.id = attempts.job_id
WHERE jobs.tenant_id = %s AND jobs.state = 'succeeded'
GROUP BY attempts.job_id ORDER BY count(*) DESC, attempts.job_id DESC LIMIT 1
"""

_CAUSE = re.compile(r"\d[\d,]*")

console = Console(width=200)


def main() -> int:
    """Run; return 1 if the page could not be read to the end."""
    parser = argparse.ArgumentParser(prog="python -m tests.live_page.chaos", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1.9)
    options = parser.parse_args()
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit("no Chromium on this machine: install the package chromium")
    with running("live-page", seed=options.seed, say=_say, shape=Shape()) as run:
        watcher = Watcher(run.cluster, chromium, options.folder)
        watcher.start()
        load = run.let_in(12.0)
        flood = threading.Timer(options.minutes * 30, _flood, [run.cluster])
        flood.start()
        break_things(run, load, options.minutes * 60, tuple(KINDS))
        flood.join()
        run.finish()
        watcher.end(_job_of_many_attempts(run.cluster))
        _report(watcher.looks, read_journal(run.cluster.journal.path))
    if watcher.error:
        _say(f"the page could not be read: {watcher.error}")
    return 1 if watcher.error else 0


def _say(sentence: str) -> None:
    console.print(sentence, markup=False, highlight=False)


def _flood(cluster: Cluster) -> None:
    """Submit many long jobs of the first tenant, to any API that answers."""
    body = {"model": "fake", "sampling": {"max_tokens": 300, "ignore_eos": True}}
    num_accepted = 0
    headers = {"Authorization": f"Bearer {cluster.tenants[0].key}"}
    with httpx2.Client(timeout=5, trust_env=False, headers=headers) as http:
        for number in range(_FLOOD_JOBS):
            with suppress(httpx2.TransportError):
                url = f"{cluster.api_urls[number % len(cluster.api_urls)]}/v1/jobs"
                num_accepted += http.post(url, json=body | {"input": {"prompt": f"flood {number}"}}).is_success
    _say(f"a flood of {num_accepted} jobs of the first tenant")


def _job_of_many_attempts(cluster: Cluster) -> str | None:
    with psycopg.connect(**database_of(cluster)) as connection:  # type: ignore[arg-type] # the values are strings
        row = connection.execute(_ATTEMPTS, [cluster.tenants[0].id]).fetchone()
    return None if row is None else str(row[0])


def _report(looks: Sequence[Look], events: list[dict[str, object]]) -> None:
    for name, column in (("waiting", 0), ("running", 1), ("held", 1)):
        _say("{}: {} of {} figures were the database's".format(name, *counts_right(looks, column, name)))
    killed, unexplained = worker_names(looks, events)
    _say("killed workers that the page named: {} of {}".format(*killed))
    _say("floods that were one: {} of {}".format(*flood_right(looks)))
    _say(f"{len(looks)} looks; sentences about workers to which nothing was done:")
    for text in sorted(unexplained):
        _say(f"  {text}")
    for note, number in Counter(note for look in looks for note in look.page["notes"]).items():
        _say(f"{number} times: {note}")
    # Of each kind and cause one sentence: figures differ from look to look.
    causes = Counter((one["kind"], _CAUSE.sub("N", one["text"])) for look in looks for one in look.page["problems"])
    for (kind, text), number in sorted(causes.items()):
        _say(f"{number} times {kind}: {text}")


if __name__ == "__main__":
    sys.exit(main())
