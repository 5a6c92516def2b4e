"""``python -m tests.alerts``: break a running Headrace in one way after another until each alert has fired.

Prints a table with the seconds from the fault to the firing alert. Exits 1 if an alert did not fire, or if one fired
that no fault explains (``companions``). Windows and pending times are shortened (``prometheus.shortened``), thresholds
are those of the file.
"""

import argparse
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from tests.alerts.cases import CASES
from tests.alerts.companions import false_alerts
from tests.alerts.prometheus import Prometheus, running_prometheus
from tests.alerts.stage import Caller, Stage, start_receiver
from tests.chaos.cluster import ROOT, Shape, running_cluster

_LONGEST_S = 150.0
_CALM_S = 90.0
_TURN_S = 0.2
# As long as the windows of most rules, and a little longer.
_WATCH_S = 45.0
_NO_FAULT = "no fault"

console = Console(stderr=True)


def main() -> int:
    """Fire the alerts that are named, or all; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.alerts", description=__doc__)
    parser.add_argument("alerts", nargs="*", choices=[*CASES, []], help="all if none is named")
    names = parser.parse_args().alerts or list(CASES)
    took: dict[str, float | None] = {}
    others: dict[str, set[str]] = {}
    with _running() as (stage, prometheus):
        others[_NO_FAULT] = _watch(stage, prometheus)
        for name in names:
            took[name], others[name] = _fire(stage, prometheus, name)
            console.print(f"{name}: {_told(took[name])}; {_list(others[name])}", markup=False, highlight=False)
    false = false_alerts(others)
    table = Table("alert", "fault", "seconds to fire", "fired too")
    for name, seconds in took.items():
        table.add_row(name, CASES[name].fault, _told(seconds), _list(others[name]))
    out = Console(width=200)
    out.print(table)
    for name, alerts in false.items():
        out.print(f"false, during {name}: {_list(alerts)}", markup=False, highlight=False)
    return 0 if not false and all(seconds is not None for seconds in took.values()) else 1


def _told(seconds: float | None) -> str:
    return "did not fire" if seconds is None else f"{seconds:.0f}"


def _list(alerts: Collection[str]) -> str:
    return ", ".join(sorted(one.removeprefix("Headrace") for one in alerts))


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


def _watch(stage: Stage, prometheus: Prometheus) -> set[str]:
    """Return what fires under the load alone, without a fault."""
    fired: set[str] = set()
    until = time.monotonic() + _CALM_S
    # The dispatcher leads some seconds after its start: until then HeadraceNoLeader is right.
    while (not prometheus.is_scraping() or prometheus.firing()) and time.monotonic() < until:
        stage.cluster.tend()
        time.sleep(_TURN_S)
    until = time.monotonic() + _WATCH_S
    while time.monotonic() < until:
        fired |= prometheus.firing()
        stage.cluster.tend()
        time.sleep(_TURN_S)
    return fired


def _fire(stage: Stage, prometheus: Prometheus, name: str) -> tuple[float | None, set[str]]:
    """Return the seconds from the fault to the alert, None if it did not fire; and the others that began to fire."""
    _calm_down(stage, prometheus, name)
    began = time.monotonic()
    stage.has_fired = False
    fired_after: float | None = None
    before, others = prometheus.firing(), set[str]()
    for _ in CASES[name].run(stage):
        now = time.monotonic()
        firing = prometheus.firing()
        others |= firing - before - {name}
        if not stage.has_fired and name in firing:
            stage.has_fired, fired_after = True, now - began
        # The fault is repaired after the longest time, as if the alert had fired.
        stage.has_fired = stage.has_fired or now - began > _LONGEST_S
        stage.cluster.tend()
        prometheus.follow(stage.cluster.members)
        time.sleep(_TURN_S)
    prometheus.follow(stage.cluster.members)
    stage.cluster.wait_ready()
    return fired_after, others


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
