"""The client that blocks."""

import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2

from headrace.client.connection import connection_options
from headrace.client.errors import ClientError
from headrace.client.job_calls import MAX_RETRIES, Answer, Call, JobCalls, Steps
from headrace.client.job_data import JobBody, JobInfo, JobPage, Json, StreamEvent
from headrace.client.retries import Warn

T = TypeVar("T")


class Client:
    """A client of one API with one key, for any number of threads. Every method raises ClientError.

    A request that fails in passing (429, 502, 503, 504, no answer) is repeated up to ``max_retries`` times.
    ``wait``, ``result`` and ``stream`` go on for longer: until ``timeout_s``; without it, for 300 s if the server has
    answered before.
    ``on_warning`` gets the warnings of answers, such as one for a model without a worker, and long pauses before a
    repeat. Raises InvalidBaseUrl.
    """

    def __init__(
        self, base_url: str, api_key: str, *, max_retries: int = MAX_RETRIES, on_warning: Warn = lambda _sentence: None
    ) -> None:
        self._http = httpx2.Client(**connection_options(base_url, api_key))
        self._calls = JobCalls(base_url, max_retries, on_warning)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def submit(self, *, idempotency_key: str | None = None, **body: Unpack[JobBody]) -> JobInfo:
        """Submit a job and return it. The same key with the same body returns the same job.

        Without ``idempotency_key`` the client makes one, so a repeat after a lost connection makes no second job.
        """
        return self._run(self._calls.submit(body, idempotency_key))

    def job(self, job_id: str, *, wait_s: float = 0) -> JobInfo:
        """Return a job, at its end or after ``wait_s``, at most 60."""
        return self._run(self._calls.job(job_id, wait_s))

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> JobInfo:
        """Return a job at its end, in whatever state. Raises WaitExpired after ``timeout_s``."""
        return self._run(self._calls.wait(job_id, timeout_s))

    def result(self, job_id: str, *, timeout_s: float | None = None) -> Json:
        """Return the output of a job at its end. Raises JobUnsuccessful, or WaitExpired after ``timeout_s``."""
        return self._run(self._calls.result(job_id, timeout_s))

    def stream(self, job_id: str, *, after: str | None = None) -> Iterator[StreamEvent]:
        """Yield the events of a job up to the terminal one, each once, over as many connections as it takes.

        ``after``: the id of an event; only later ones are yielded.
        """
        following = self._calls.stream(job_id, after)
        while True:
            failure: httpx2.TransportError | ClientError | None = None
            try:
                with self._http.stream("GET", following.path, headers=following.headers) as response:
                    if response.is_error:
                        response.read()
                    following.open(response)
                    if following.has_ended:
                        return
                    for sent in httpx2.EventSource(response, max_event_size=None):
                        yield following.read(sent)
                        if following.has_ended:
                            return
            except (httpx2.TransportError, ClientError) as error:
                failure = error
            time.sleep(following.pause_s(failure))

    def cancel(self, job_id: str) -> JobInfo:
        """Cancel a job and return it: at once while it is queued, at the next step while it runs."""
        return self._run(self._calls.cancel(job_id))

    def delete(self, job_id: str) -> None:
        """Delete the input and output of an ended job."""
        self._run(self._calls.delete(job_id))

    def jobs(
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
        """Return a page of the jobs that match, newest first; ``order="asc"``: oldest first."""
        filters = {"status": status, "task": task, "model": model, "created_after": created_after}
        return self._run(self._calls.jobs({**filters, "limit": limit, "after": after, "order": order}, metadata))

    def timeline(self, job_id: str) -> list[Json]:
        """Return what happened to a job, oldest first: ``kind``, ``at``, ``epoch`` and ``detail``."""
        return self._run(self._calls.timeline(job_id))

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        idempotency_key: str | None = None,
    ) -> Json:
        """Send a request to any other route, and return its JSON object. Parameters that are None are left out.

        A POST without ``idempotency_key`` is repeated only after 429.
        """
        return self._run(self._calls.request(method, path, params, json, idempotency_key))

    def _run(self, steps: Steps[T]) -> T:
        answer: Answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as done:
                result: T = done.value
                return result
            answer = self._take(step)

    def _take(self, step: Call | float) -> Answer:
        if not isinstance(step, Call):
            time.sleep(step)
            return None
        try:
            return self._http.request(step.method, step.path, params=step.params, json=step.json, headers=step.headers)
        except httpx2.TransportError as error:
            return error
