"""Readers that are cut off at every event, and readers that disconnect (P10)."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Iterator

import httpx2

from tests.chaos import measures
from tests.chaos.load import LoadThread, Order
from tests.chaos.report import Json
from tests.chaos.soak import Run

# Keep-alive connections of the customers who are still there come and go.
SLACK = {"fds": 30, "subscriptions": 12}
_BACK_S = 30.0


def cut_everywhere(seed: int, numbers: Iterator[int]) -> Iterator[Order]:
    """Orders with streams that are cut after each event, or after a random number of events."""
    rng = random.Random(seed)
    for n in numbers:
        yield Order(
            n=n,
            tenant=n % 3,
            prompt=f"run {seed}, order {n}: a stream that is cut.",
            max_tokens=rng.choice((20, 40, 80)),
            follow="stream",
            cut_every=1 if n % 3 == 0 else rng.randrange(1, 25),
        )


def abandon(run: Run, load: LoadThread, num_readers: int) -> Json:
    """Open many streams, drop them all early, and check that the APIs release all resources."""
    load.set_rate(0.5)
    alone = _held(run)
    # Warm up pools, caches and the allocator with as many readers first: Python returns little memory to the system. A
    # leak would show again with each further thousand.
    asyncio.run(_open_and_leave(run, num_readers))
    run.wait(10)
    before = _held(run)
    peak = asyncio.run(_open_and_leave(run, num_readers))
    until = time.monotonic() + _BACK_S
    while time.monotonic() < until and any(_held(run)[name] > before[name] + SLACK[name] for name in SLACK):
        run.wait(0.5)
    after = _held(run)
    figures = {
        name: {"alone": alone[name], "before": before[name], "open": peak[name], "after": after[name]}
        for name in before
    }
    return {"abandoned_readers": num_readers, **figures}


def _held(run: Run) -> dict[str, int]:
    memory = measures.resident_mb(run.cluster)
    return {
        "fds": measures.num_fds(run.cluster),
        "subscriptions": measures.num_subscriptions(run.cluster),
        "memory_mb": sum(mb for name, mb in memory.items() if name.startswith("api")),
    }


async def _open_and_leave(run: Run, num_readers: int) -> dict[str, int]:
    """Connect many readers at once to long jobs and disconnect them; return the resources held meanwhile."""
    limits = httpx2.Limits(max_connections=num_readers + 50)
    tenant = run.cluster.tenants[0]
    headers = {"Authorization": f"Bearer {tenant.key}"}
    async with httpx2.AsyncClient(timeout=60, limits=limits, trust_env=False, headers=headers) as http:
        jobs = [await _submit(http, run, n) for n in range(8)]
        places = asyncio.Semaphore(50)
        streams = await asyncio.gather(*(_enter(http, run, jobs[n % 8], n, places) for n in range(num_readers)))
        run.say(f"{sum(one is not None for one in streams)} streams open")
        held = _held(run)
        # In the middle of their streams.
        await asyncio.gather(*(one.aclose() for one in streams if one is not None), return_exceptions=True)
        return held


async def _submit(http: httpx2.AsyncClient, run: Run, n: int) -> str:
    body = {
        "model": "fake",
        "input": {"prompt": f"run {run.seed}, long order {n} at {time.monotonic_ns()}"},
        "sampling": {"max_tokens": 1500, "temperature": 0, "ignore_eos": True},
    }
    response = await http.post(run.cluster.api_urls[n % 2] + "/v1/jobs", json=body)
    return str(response.raise_for_status().json()["id"])


async def _enter(
    http: httpx2.AsyncClient, run: Run, job_id: str, n: int, places: asyncio.Semaphore
) -> AsyncGenerator[str, None] | None:
    """Read one line, and return the open rest: dropped, it would close the connection."""
    async with places:
        url = f"{run.cluster.api_urls[n % 2]}/v1/jobs/{job_id}/events"
        try:
            response = await http.send(http.build_request("GET", url), stream=True)
            lines = response.aiter_lines()
            await anext(lines)
        except (httpx2.TransportError, StopAsyncIteration):
            return None
        return lines
