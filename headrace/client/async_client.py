"""The client for asyncio."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2

from headrace.client.connection import connection_options
from headrace.client.errors import ClientError
from headrace.client.job_calls import MAX_RETRIES, Answer, Call, JobCalls, Steps
from headrace.client.job_data import JobBody, JobInfo, JobPage, Json, StreamEvent
from headrace.client.retries import Warn

T = TypeVar("T")


class AsyncClient:
    """The same as ``Client``, with coroutines."""

    def __init__(
        self, base_url: str, api_key: str, *, max_retries: int = MAX_RETRIES, on_warning: Warn = lambda _sentence: None
    ) -> None:
        self._http = httpx2.AsyncClient(**connection_options(base_url, api_key))
        self._calls = JobCalls(base_url, max_retries, on_warning)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def submit(self, *, idempotency_key: str | None = None, **body: Unpack[JobBody]) -> JobInfo:
        """As ``Client.submit``."""
        return await self._run(self._calls.submit(body, idempotency_key))

    async def job(self, job_id: str, *, wait_s: float = 0) -> JobInfo:
        """As ``Client.job``."""
        return await self._run(self._calls.job(job_id, wait_s))

    async def wait(self, job_id: str, *, timeout_s: float | None = None) -> JobInfo:
        """As ``Client.wait``."""
        return await self._run(self._calls.wait(job_id, timeout_s))

    async def result(self, job_id: str, *, timeout_s: float | None = None) -> Json:
        """As ``Client.result``."""
        return await self._run(self._calls.result(job_id, timeout_s))

    async def stream(self, job_id: str, *, after: str | None = None) -> AsyncGenerator[StreamEvent]:
        """As ``Client.stream``."""
        following = self._calls.stream(job_id, after)
        while True:
            failure: httpx2.TransportError | ClientError | None = None
            try:
                async with self._http.stream("GET", following.path, headers=following.headers) as response:
                    if response.is_error:
                        await response.aread()
                    following.open(response)
                    if following.has_ended:
                        return
                    async for sent in httpx2.EventSource(response, max_event_size=None):
                        yield following.read(sent)
                        if following.has_ended:
                            return
            except (httpx2.TransportError, ClientError) as error:
                failure = error
            await asyncio.sleep(following.pause_s(failure))

    async def cancel(self, job_id: str) -> JobInfo:
        """As ``Client.cancel``."""
        return await self._run(self._calls.cancel(job_id))

    async def delete(self, job_id: str) -> None:
        """As ``Client.delete``."""
        await self._run(self._calls.delete(job_id))

    async def jobs(
        self,
        *,
        status: str | None = None,
        task: str | None = None,
        model: str | None = None,
        created_after: int | None = None,
        metadata: Mapping[str, str] | None = None,
        limit: int | None = None,
        after: str | None = None,
        order: str | None = None,
    ) -> JobPage:
        """As ``Client.jobs``."""
        filters = {"status": status, "task": task, "model": model, "created_after": created_after}
        return await self._run(self._calls.jobs({**filters, "limit": limit, "after": after, "order": order}, metadata))

    async def timeline(self, job_id: str) -> list[Json]:
        """As ``Client.timeline``."""
        return await self._run(self._calls.timeline(job_id))

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        idempotency_key: str | None = None,
    ) -> Json:
        """As ``Client.request``."""
        return await self._run(self._calls.request(method, path, params, json, idempotency_key))

    async def _run(self, steps: Steps[T]) -> T:
        answer: Answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as done:
                result: T = done.value
                return result
            answer = await self._take(step)

    async def _take(self, step: Call | float) -> Answer:
        if not isinstance(step, Call):
            await asyncio.sleep(step)
            return None
        try:
            return await self._http.request(
                step.method, step.path, params=step.params, json=step.json, headers=step.headers
            )
        except httpx2.TransportError as error:
            return error
