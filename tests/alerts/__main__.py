"""``python -m tests.alerts``: break a running Headrace in one way after another until each alert has fired.

Prints a table with the seconds from the fault to the firing alert, and exits 1 if an alert did not fire. Windows and
pending times are shortened (``prometheus.shortened``), thresholds are those of the file.
"""

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from tests.alerts.cases import CASES
from tests.alerts.prometheus import Prometheus, running_prometheus
from tests.alerts.stage import Caller, Stage, start_receiver
from tests.chaos.cluster import ROOT, Shape, running_cluster

_LONGEST_S = 150.0
_CALM_S = 90.0
_TURN_S = 0.2

console = Console(stderr=True)


def main() -> int:
    """Fire the alerts that are named, or all; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.alerts", description=__doc__)
    parser.add_argument("alerts", nargs="*", choices=[*CASES, []], help="all if none is named")
    names = parser.parse_args().alerts or list(CASES)
    took: dict[str, float | None] = {}
    with _running() as (stage, prometheus):
        for name in names:
            took[name] = _fire(stage, prometheus, name)
            console.print(f"{name}: {_told(took[name])}", markup=False, highlight=False)
    table = Table("alert", "fault", "seconds to fire")
    for name, seconds in took.items():
        table.add_row(name, CASES[name].fault, _told(seconds))
    Console(width=140).print(table)
    return 0 if all(seconds is not None for seconds in took.values()) else 1


def _told(seconds: float | None) -> str:
    return "did not fire" if seconds is None else f"{seconds:.0f}"


@contextmanager
def _running() -> Iterator[tuple[Stage, Prometheus]]:
    receiver = start_receiver()
    shape = Shape(apis=1, workers=2, dispatchers=1)
    with (
        running_cluster(shape, keep_logs=ROOT / "build" / "chaos" / "alerts") as cluster,
        running_prometheus(cluster) as prometheus,
    ):
        caller = Caller(cluster)
        threading.Thread(target=caller.run, daemon=True).start()
        try:
            yield Stage(cluster, caller, f"http://127.0.0.1:{receiver.server_port}"), prometheus
        finally:
            caller.stop()
            receiver.shutdown()


def _fire(stage: Stage, prometheus: Prometheus, name: str) -> float | None:
    """Return the seconds from the fault to the alert; None if it did not fire."""
    _calm_down(stage, prometheus, name)
    began = time.monotonic()
    stage.has_fired = False
    fired_after: float | None = None
    for _ in CASES[name].run(stage):
        now = time.monotonic()
        if not stage.has_fired and name in prometheus.firing():
            stage.has_fired, fired_after = True, now - began
        # The fault is repaired after the longest time, as if the alert had fired.
        stage.has_fired = stage.has_fired or now - began > _LONGEST_S
        stage.cluster.tend()
        time.sleep(_TURN_S)
    stage.cluster.wait_ready()
    return fired_after


def _calm_down(stage: Stage, prometheus: Prometheus, name: str) -> None:
    """Wait until every process is scraped and no alert fires from the fault before.

    Raises TimeoutError if the alert itself still fires: then the fault would prove nothing.
    """
    until = time.monotonic() + _CALM_S
    while not prometheus.is_scraping() or prometheus.firing():
        if time.monotonic() > until:
            if name not in prometheus.firing():
                return
            raise TimeoutError(f"{name} fires before its fault")
        stage.cluster.tend()
        time.sleep(_TURN_S)


if __name__ == "__main__":
    sys.exit(main())
