"""Samples the size of a worker's batch from its metrics, a few times a second."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2

_EVERY_S = 0.15
_PREFIX = "headrace_engine_"


@dataclass
class Occupancy:
    """Number of jobs in the batch at each sample. ``peak`` and ``mean`` are the engine's counts per step."""

    running: list[int] = field(default_factory=list)
    peak: int = 0
    mean: float = 0.0

    def add(self, gauges: dict[str, float]) -> None:
        """Record one sample."""
        self.running.append(int(gauges.get("running", 0)))
        self.peak = int(gauges.get("peak_batch", self.peak))
        self.mean = gauges.get("mean_batch", self.mean)


@contextmanager
def sampled(url: str, occupancy: Occupancy) -> Iterator[None]:
    """Fill ``occupancy`` from the worker's metrics page for as long as the block runs."""
    done = threading.Event()
    with httpx2.Client(timeout=2, trust_env=False) as http:
        thread = threading.Thread(target=_sample, args=(http, url, occupancy, done), name="sampler")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _sample(http: httpx2.Client, url: str, occupancy: Occupancy, done: threading.Event) -> None:
    while not done.wait(_EVERY_S):
        try:
            page = http.get(url).text
        except httpx2.TransportError:
            continue  # the chart lacks a column; failures of the worker show in the jobs
        occupancy.add(read_gauges(page))


def read_gauges(page: str) -> dict[str, float]:
    """The engine's gauges of a Prometheus page, by their short names."""
    rows = (line.rpartition(" ") for line in page.splitlines() if line.startswith(_PREFIX))
    return {name.removeprefix(_PREFIX).partition("{")[0]: float(value) for name, _, value in rows}
