"""The methods of both clients without I/O: which requests they send, and what they make of the answers.

A method is a generator of steps. It yields a ``Call`` to send, and gets the response or the error of the transport; or
it yields the seconds of a pause. Its return value is the method's.
"""

import time
import uuid
from collections.abc import Generator, Mapping, Set
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from urllib.parse import quote

import httpx2

from headrace.client import answers
from headrace.client.errors import ClientError, JobUnsuccessful, RequestRefused, WaitExpired
from headrace.client.job_data import TERMINAL, JobBody, JobInfo, JobPage, Json
from headrace.client.job_stream import JobStream
from headrace.client.retries import OUTAGE_S, Retries, Warn

T = TypeVar("T")

MAX_RETRIES = 5
LONG_POLL_S, POLL_S = 30.0, 1.0
"""How long one request waits for the end of a job, and the pause if the server does not wait."""

_JOB = frozenset({"id", "status"})


@dataclass(frozen=True)
class Call:
    """A request. ``is_repeatable``: it can be sent again without knowing whether the server got it."""

    method: str
    path: str
    params: Mapping[str, Any] | None = None
    json: Any = None
    headers: Mapping[str, str] | None = None
    is_repeatable: bool = True


Answer = httpx2.Response | httpx2.TransportError | None
Steps = Generator[Call | float, Answer, T]


def job_path(job_id: str, *more: str) -> str:
    """Return the path of a job; an id cannot reach another route."""
    return "/".join(["/v1/jobs", quote(job_id, safe=""), *more])


class JobCalls:
    """The methods of a client of one server."""

    def __init__(self, base_url: str, max_retries: int, on_warning: Warn) -> None:
        self.base_url = base_url.rstrip("/")
        self.max_retries = max_retries
        self.on_warning = on_warning
        self._has_answered = False

    def send(self, call: Call, expected: Set[str] = frozenset()) -> Steps[Json]:
        """Send a request, repeat it if that is safe and can help, and return the JSON of its answer."""
        retries = Retries(self.max_retries, self.on_warning)
        while True:
            try:
                return (yield from self._send_once(call, expected))
            except ClientError as error:
                # After 429 the server has done nothing; after other failures it may have.
                if not call.is_repeatable and error.status != httpx2.codes.TOO_MANY_REQUESTS:
                    raise
                yield retries.pause_s(error)

    def _send_once(self, call: Call, expected: Set[str]) -> Steps[Json]:
        answer = yield call
        if not isinstance(answer, httpx2.Response):
            raise answers.lost(cast(httpx2.TransportError, answer), self.base_url) from answer
        body = answers.read(answer, self.base_url, expected)
        self._has_answered = True
        if warning := answer.headers.get("headrace-warning"):
            self.on_warning(warning)
        return body

    def request(
        self, method: str, path: str, params: Mapping[str, Any] | None, json: Any, idempotency_key: str | None
    ) -> Steps[Json]:
        """Any request."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        given = {name: value for name, value in (params or {}).items() if value is not None}
        is_repeatable = method.upper() in {"GET", "HEAD", "PUT", "DELETE"} or idempotency_key is not None
        return self.send(Call(method.upper(), path, given, json, headers, is_repeatable))

    def submit(self, body: JobBody, idempotency_key: str | None) -> Steps[JobInfo]:
        """Submit a job under a key, so that a repeat finds the same job."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._job(Call("POST", "/v1/jobs", json=body, headers=headers))

    def job(self, job_id: str, wait_s: float) -> Steps[JobInfo]:
        """Read a job; wait for its end for at most ``wait_s``."""
        return self._job(_poll(job_id, wait_s))

    def wait(self, job_id: str, timeout_s: float | None) -> Steps[JobInfo]:
        """Wait for the end of a job, also while the server is away for a time."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        retries = self._patient_retries(until)
        while True:
            polled_at = time.monotonic()
            left_s = LONG_POLL_S if until is None else until - polled_at
            try:
                found = yield from self._send_once(_poll(job_id, min(LONG_POLL_S, left_s)), _JOB)
            except ClientError as error:
                yield retries.pause_s(error)
                continue
            retries.reset()
            retries.be_patient()
            job = cast(JobInfo, found)
            if job["status"] in TERMINAL:
                return job
            now = time.monotonic()
            if until is not None and now >= until:
                raise WaitExpired(job, timeout_s or 0.0)
            if now - polled_at < POLL_S:
                # A server that stops, or has HEADRACE_MAX_WAIT_S=0, answers at once.
                yield min(POLL_S, POLL_S if until is None else until - now)

    def result(self, job_id: str, timeout_s: float | None) -> Steps[Json]:
        """Wait for the end of a job and return its output."""
        job = yield from self.wait(job_id, timeout_s)
        if job["status"] != "succeeded" or job["output"] is None:
            raise JobUnsuccessful(job)
        return job["output"]

    def cancel(self, job_id: str) -> Steps[JobInfo]:
        """Cancel a job; a second time changes nothing."""
        try:
            return (yield from self._job(Call("POST", job_path(job_id, "cancel"))))
        except RequestRefused as error:
            # So says the server also of a job that the same request has cancelled, if its answer was lost.
            if error.code != "job_not_cancellable":
                raise
            job = yield from self.job(job_id, 0.0)
            if job["status"] != "cancelled":
                raise
            return job

    def delete(self, job_id: str) -> Steps[None]:
        """Delete the contents of an ended job."""
        yield from self.send(Call("DELETE", job_path(job_id)))

    def jobs(self, filters: Mapping[str, Any], metadata: Mapping[str, str] | None) -> Steps[JobPage]:
        """Read a page of jobs."""
        params = {name: value for name, value in filters.items() if value is not None}
        params |= {f"metadata[{name}]": value for name, value in (metadata or {}).items()}
        found = yield from self.send(Call("GET", "/v1/jobs", params), {"data", "has_more"})
        return cast(JobPage, found)

    def timeline(self, job_id: str) -> Steps[list[Json]]:
        """Read the events of a job, oldest first."""
        found = yield from self.send(Call("GET", job_path(job_id, "timeline")), {"events"})
        return list(found["events"])

    def stream(self, job_id: str, after: str | None) -> JobStream:
        """Return the state of a stream."""
        return JobStream(
            job_path(job_id, "events"),
            after,
            base_url=self.base_url,
            retries=self._patient_retries(),
        )

    def _patient_retries(self, until: float | None = None) -> Retries:
        outage_s = OUTAGE_S if self._has_answered else 0.0
        return Retries(self.max_retries, self.on_warning, until=until, outage_s=outage_s)

    def _job(self, call: Call) -> Steps[JobInfo]:
        return cast(JobInfo, (yield from self.send(call, _JOB)))


def _poll(job_id: str, wait_s: float) -> Call:
    return Call("GET", job_path(job_id), {"wait": wait_s} if wait_s > 0 else None)
