"""Submits jobs at a steady rate and asks after each until it has ended; records the answers, nothing else."""

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

import httpx2

from benchmarks.queue.load import Dialect

_FIRST_POLL_S, _LONGEST_POLL_S = 0.3, 1.5
_CALL_S = 15.0


@dataclass
class Told:
    """An accepted job as its owner sees it. ``state`` None: no end was reported."""

    accepted_at: float
    state: str | None = None
    ended_at: float | None = None


@dataclass
class ClientLog:
    """Everything that was answered: accepted jobs by id, and submits that were not accepted."""

    jobs: dict[str, Told] = field(default_factory=dict)
    refused: int = 0

    @property
    def num_open(self) -> int:
        """Accepted jobs without a known end."""
        return sum(told.state is None for told in list(self.jobs.values()))


class Client:
    """One run's load: ``rate`` jobs a second for ``seconds``, of random length, the same for a seed."""

    def __init__(self, port: int, dialect: Dialect, *, seed: int, rate: float, seconds: float) -> None:
        self.log = ClientLog()
        self.is_submitting = True
        self._dialect = dialect
        self._draw = random.Random(seed)
        self._rate = rate
        self._seconds = seconds
        self._leave = asyncio.Event()
        self._url = f"http://127.0.0.1:{port}"
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> None:
        """Work until ``leave`` is set; meant for a thread."""
        asyncio.run(self._run())

    def leave(self) -> None:
        """Stop asking. From any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._leave.set)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        limits = httpx2.Limits(max_connections=64)
        async with httpx2.AsyncClient(
            base_url=self._url, headers=self._dialect.headers, timeout=_CALL_S, limits=limits, trust_env=False
        ) as http:
            tasks = [asyncio.create_task(self._job(http, at_s, size)) for at_s, size in self._jobs()]
            submitting = asyncio.create_task(asyncio.sleep(self._seconds))
            await submitting
            self.is_submitting = False
            await self._leave.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _jobs(self) -> list[tuple[float, int]]:
        """Return when each job is submitted, and its length in steps of 20 ms: 0.2 to 1.2 s, a few 4 s."""
        jobs, at_s = [], 0.0
        while (at_s := at_s + self._draw.expovariate(self._rate)) < self._seconds:
            jobs.append((at_s, 200 if self._draw.random() < 0.03 else self._draw.randint(10, 60)))
        return jobs

    async def _job(self, http: httpx2.AsyncClient, at_s: float, size: int) -> None:
        await asyncio.sleep(at_s)
        try:
            response = await http.post(
                self._dialect.submit_path,
                content=self._dialect.submit_body.replace("{n}", str(size)),
                headers={"Content-Type": "application/json"},
            )
            job_id = response.raise_for_status().json()[self._dialect.id_field]
        except httpx2.HTTPError:
            self.log.refused += 1
            return
        told = self.log.jobs[job_id] = Told(time.monotonic())
        pause_s = _FIRST_POLL_S
        while told.state is None:
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_POLL_S, pause_s * 1.3)
            state = await self._state(http, job_id)
            if state in self._dialect.succeeded or state in self._dialect.failed:
                told.state = "succeeded" if state in self._dialect.succeeded else "failed"
                told.ended_at = time.monotonic()

    async def _state(self, http: httpx2.AsyncClient, job_id: str) -> str | None:
        assert self._dialect.poll_path is not None
        try:
            response = await http.get(self._dialect.poll_path.replace("{id}", job_id))
            answer: dict[str, Any] = response.raise_for_status().json()
        except (httpx2.HTTPError, ValueError):
            return None
        return str(answer[self._dialect.state_field])
