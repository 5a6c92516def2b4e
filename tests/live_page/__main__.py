"""``python -m tests.live_page FOLDER``: break a running Headrace, and take a picture of the Live page in each scene.

The page stays open in one tab, as with an operator, and gets its figures as they come. Prints what the page says needs
attention in each scene, and exits 1 if a scene's sentence did not come. Takes about three minutes.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from rich.console import Console

from benchmarks.console import load
from benchmarks.console.chromium import Chromium, PageError, Tab, find_chromium, running_chromium
from tests.alerts.stage import Caller, Stage
from tests.chaos.cluster import SHORT_TIMES, Cluster, Shape, running_cluster

_SETTINGS = SHORT_TIMES | {"MAX_SLOTS": "8", "FAKE_STEP_MS": "60", "LEASE_S": "6", "MAX_STEP_S": "60"}
_LONGEST_S = 60.0
_SAID = "(document.querySelector('.problems')?.innerText ?? '')"

console = Console()


@dataclass(frozen=True)
class Scene:
    """A question, the fault that raises it, and a text that the page must show meanwhile."""

    question: str
    expected: str
    fault: Callable[[Stage], Iterator[None]]


def _calm(stage: Stage) -> Iterator[None]:
    yield from stage.until_fired()


def _flood(stage: Stage) -> Iterator[None]:
    body = {"model": "fake", "input": {"prompt": "flood"}, "sampling": _LONG}
    with httpx2.Client(timeout=60, trust_env=False) as http:
        for _ in range(60):
            stage.caller.ask(http, "/v1/jobs", body).raise_for_status()
    yield from stage.until_fired()


def _sick(stage: Stage) -> Iterator[None]:
    worker = stage.cluster.find("worker-1")
    stage.cluster.signal(worker, signal.SIGSTOP)
    yield from stage.until_fired()
    stage.cluster.signal(worker, signal.SIGCONT)


def _dead(stage: Stage) -> Iterator[None]:
    worker = stage.cluster.find("worker-2")
    worker.keep = False
    stage.cluster.signal(worker, signal.SIGKILL)
    yield from stage.until_fired()
    worker.keep = True


def _paused(stage: Stage) -> Iterator[None]:
    stage.post("/v1/queues/fake@1/pause")
    yield from stage.until_fired()
    stage.post("/v1/queues/fake@1/resume")


_LONG = {"max_tokens": 300, "temperature": 0, "ignore_eos": True}

# The order matters: a flood leaves a queue behind, in which the later scenes have jobs that wait.
SCENES = {
    "calm": Scene("how full are the batches?", "", _calm),
    "flood": Scene("which tenant floods, what waits, and why is it slow?", "tenant amber has", _flood),
    "sick": Scene("which worker is sick?", "is late", _sick),
    "dead": Scene("which worker is gone, and what did it hold?", "is lost", _dead),
    "paused": Scene("why does nothing start?", "the queue is paused", _paused),
}


def main() -> int:
    """Play the scenes; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.live_page", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    folder: Path = parser.parse_args().folder
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit("no Chromium on this machine: install the package chromium")
    shape = Shape(apis=1, workers=2, dispatchers=1, settings=_SETTINGS)
    is_good = True
    with running_cluster(shape) as cluster, running_chromium(chromium) as browser, _live(browser, cluster) as tab:
        stage = Stage(cluster, Caller(cluster), "http://127.0.0.1:9")
        keys = [tenant.key for tenant in cluster.tenants]
        with load.arrivals(cluster.api_urls[0], keys, 3.0, (60, 120)):
            _turn(stage, 15.0)
            for name, scene in SCENES.items():
                is_good &= _play(stage, tab, scene, folder / f"live-page-{name}.png")
        _job(tab, cluster, folder / "live-page-job.png")
    return 0 if is_good else 1


@contextmanager
def _live(browser: Chromium, cluster: Cluster) -> Iterator[Tab]:
    with browser.tab() as tab:
        url = cluster.api_urls[0]
        tab.dress(width=1280, height=860)
        tab.open(f"{url}/healthz")
        tab.wait("location.pathname === '/healthz' && document.readyState === 'complete'")
        tab.run(f"sessionStorage.setItem('headrace.key', {json.dumps(cluster.tenants[0].key)})")
        tab.open(f"{url}/console#/live")
        tab.wait("document.querySelector('.status.live') !== null")
        yield tab


def _play(stage: Stage, tab: Tab, scene: Scene, picture: Path) -> bool:
    """Run the fault until the page shows the expected text, take the picture, and repair."""
    stage.has_fired = False
    began = time.monotonic()
    shown = ""
    for _ in scene.fault(stage):
        if not stage.has_fired:
            shown = str(tab.run(_SAID))
            if scene.expected in shown and time.monotonic() - began > 3:
                tab.picture(picture)
                stage.has_fired = True
            stage.has_fired |= time.monotonic() - began > _LONGEST_S
        stage.cluster.tend()
        time.sleep(0.1)
    seconds = time.monotonic() - began
    console.print(f"{scene.question} ({seconds:.0f} s)\n{shown}\n", markup=False, highlight=False)
    _turn(stage, 5.0)
    return scene.expected in shown


def _turn(stage: Stage, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stage.cluster.tend()
        time.sleep(0.2)


def _job(tab: Tab, cluster: Cluster, picture: Path) -> None:
    """Take a picture of a job that a fault has interrupted: what happened to it?"""
    del cluster
    find = (
        "fetch('/v1/jobs?limit=100', {headers: {authorization: 'Bearer ' + sessionStorage['headrace.key']}})"
        ".then((answer) => answer.json()).then((list) => list.data.find((job) => job.attempt > 1)?.id ?? '')"
    )
    try:
        job_id = tab.wait(find)
        tab.run(f"location.hash = '#/job/' + {json.dumps(job_id)}")
        tab.wait("document.querySelectorAll('.lane').length > 1")
    except PageError as error:
        console.print(f"no job with a second attempt: {error}", markup=False, highlight=False)
    time.sleep(1)
    tab.picture(picture)


if __name__ == "__main__":
    sys.exit(main())
