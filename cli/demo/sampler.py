"""Samples the size of a worker's batch from its metrics, a few times a second."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import httpx2

from headrace.store.periodic import Periodic

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
    with (
        httpx2.Client(timeout=2, trust_env=False) as http,
        Periodic("sampler", partial(_sample, http, url, occupancy), _EVERY_S),
    ):
        yield


def _sample(http: httpx2.Client, url: str, occupancy: Occupancy) -> None:
    # Without a page the chart lacks a column; failures of the worker show in the jobs.
    with suppress(httpx2.TransportError):
        occupancy.add(read_gauges(http.get(url).text))


def read_gauges(page: str) -> dict[str, float]:
    """The engine's gauges of a Prometheus page, by their short names."""
    rows = (line.rpartition(" ") for line in page.splitlines() if line.startswith(_PREFIX))
    return {name.removeprefix(_PREFIX).partition("{")[0]: float(value) for name, _, value in rows}
