"""HTTP client of Headrace's API: one method for each route, one-line errors, streams that reconnect."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx2
import orjson

from store.errors import HeadraceError, NotFound, RateLimited, RequestError, SettingsError, Unauthenticated, Unavailable

Json = dict[str, Any]

TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
_JOB = frozenset({"id", "status"})
_WAIT_S = 30
_RECONNECTS = 30

RECONNECT_S = 1.0
"""Pause before the reconnect of a broken stream."""


@dataclass(frozen=True)
class Event:
    """One server-sent event of a job's stream."""

    id: str
    name: str
    data: Json

    @property
    def is_terminal(self) -> bool:
        """True for the last event of a stream."""
        return self.name.removeprefix("job.") in TERMINAL


class Client:
    """A client of one API with one key. Every method raises HeadraceError with the server's message, or Unavailable.

    ``on_warning`` gets the warnings of successful answers, such as one for a model without a worker. Raises
    SettingsError if ``base_url`` is not a URL.
    """

    def __init__(self, base_url: str, api_key: str, on_warning: Callable[[str], None] = lambda _sentence: None) -> None:
        self.base_url = base_url.rstrip("/")
        self._on_warning = on_warning
        is_local = _host(self.base_url) in {"127.0.0.1", "localhost", "::1"}
        self._http = httpx2.Client(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=httpx2.Timeout(_WAIT_S + 30, connect=5),
            trust_env=not is_local,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._http.close()

    def submit(self, body: Json, idempotency_key: str | None = None) -> Json:
        """Submit a job and return it."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._call("POST", "/v1/jobs", _JOB, json=body, headers=headers)

    def job(self, job_id: str, wait_s: float = 0) -> Json:
        """Return a job; wait for its end for at most ``wait_s``."""
        return self._call("GET", f"/v1/jobs/{quote(job_id, safe='')}", _JOB, params={"wait": wait_s} if wait_s else {})

    def wait(self, job_id: str) -> Json:
        """Wait for the job's end and return it."""
        while (job := self.job(job_id, wait_s=_WAIT_S))["status"] not in TERMINAL:
            pass
        return job

    def jobs(self, **filters: str | int | None) -> list[Json]:
        """Return the newest jobs that match."""
        params = {name: value for name, value in filters.items() if value is not None}
        return list(self._call("GET", "/v1/jobs", {"data"}, params=params)["data"])

    def timeline(self, job_id: str) -> list[Json]:
        """Return the events of a job, oldest first."""
        return list(self._call("GET", f"/v1/jobs/{quote(job_id, safe='')}/timeline", {"events"})["events"])

    def cancel(self, job_id: str) -> Json:
        """Request a job's cancellation and return it."""
        return self._call("POST", f"/v1/jobs/{quote(job_id, safe='')}/cancel", _JOB)

    def dead_letters(self, **filters: str | int | None) -> list[Json]:
        """Return the newest matching dead letters."""
        params = {name: value for name, value in filters.items() if value is not None}
        return list(self._call("GET", "/v1/dead_letters", {"data"}, params=params)["data"])

    def replay_dead_letters(self, **filters: str | int | None) -> list[Json]:
        """Replay matching dead letters that were not replayed yet. Returns the new job of each."""
        body = {name: value for name, value in filters.items() if value is not None}
        return list(self._call("POST", "/v1/dead_letters/replay", {"data"}, json=body)["data"])

    def queues(self) -> list[Json]:
        """Return the statistics of the queues."""
        return list(self._call("GET", "/v1/queues", {"data"})["data"])

    def pause_queue(self, name: str) -> Json:
        """Pause a queue and return it."""
        return self._call("POST", f"/v1/queues/{quote(name, safe='')}/pause", {"name"})

    def resume_queue(self, name: str) -> Json:
        """Resume a queue and return it."""
        return self._call("POST", f"/v1/queues/{quote(name, safe='')}/resume", {"name"})

    def models(self) -> list[Json]:
        """Return the models, without entries for their aliases and versions."""
        found = self._call("GET", "/v1/models", {"data"})["data"]
        return [model for model in found if "@" not in str(model["id"])]

    def create_webhook_endpoint(self, url: str, events: list[str]) -> Json:
        """Register a URL for these events. The answer has the signing secret."""
        return self._call("POST", "/v1/webhook_endpoints", {"id", "secret"}, json={"url": url, "events": events})

    def delete_webhook_endpoint(self, endpoint_id: str) -> None:
        """Delete an endpoint and its deliveries."""
        self._call("DELETE", f"/v1/webhook_endpoints/{quote(endpoint_id, safe='')}", {"id"})

    def webhook_endpoints(self) -> list[Json]:
        """Return the endpoints, without their secrets."""
        return list(self._call("GET", "/v1/webhook_endpoints", {"data"})["data"])

    def test_webhook_endpoint(self, endpoint_id: str) -> Json:
        """Send a test event to an endpoint, and return its delivery."""
        return self._call("POST", f"/v1/webhook_endpoints/{quote(endpoint_id, safe='')}/test", {"id"})

    def enable_webhook_endpoint(self, endpoint_id: str) -> Json:
        """Enable an endpoint and return it."""
        return self._call("POST", f"/v1/webhook_endpoints/{quote(endpoint_id, safe='')}/enable", {"id"})

    def recover_webhook_endpoint(self, endpoint_id: str, since: int) -> int:
        """Send the events that an endpoint missed since a time (Unix seconds). Returns their number."""
        path, num_queued = f"/v1/webhook_endpoints/{quote(endpoint_id, safe='')}/recover", 0
        while True:
            answer = self._call("POST", path, {"queued", "has_more"}, json={"since": since})
            num_queued += int(answer["queued"])
            if not answer["has_more"]:
                return num_queued

    def webhook_deliveries(self, **filters: str | int | None) -> list[Json]:
        """Return the newest deliveries that match."""
        params = {name: value for name, value in filters.items() if value is not None}
        return list(self._call("GET", "/v1/webhook_deliveries", {"data"}, params=params)["data"])

    def webhook_delivery(self, delivery_id: str) -> Json:
        """Return a delivery with its attempts."""
        return self._call("GET", f"/v1/webhook_deliveries/{quote(delivery_id, safe='')}", {"id", "tries"})

    def redeliver(self, delivery_id: str) -> Json:
        """Send a delivery again and return it."""
        return self._call("POST", f"/v1/webhook_deliveries/{quote(delivery_id, safe='')}/redeliver", {"id"})

    def follow(self, job_id: str) -> Iterator[Event]:
        """Yield the job's events up to the final one, each once. Reconnects if necessary."""
        last_id = ""
        for _ in range(_RECONNECTS):
            try:
                for event in self._events(job_id, last_id):
                    last_id = event.id or last_id
                    yield event
                    if event.is_terminal:
                        return
            except (httpx2.TransportError, Unavailable):
                pass  # the connection ended before the final event; the job continues
            time.sleep(RECONNECT_S)
        raise Unavailable(f"the stream of {job_id} broke off {_RECONNECTS} times")

    def _events(self, job_id: str, last_id: str) -> Iterator[Event]:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        path = f"/v1/jobs/{quote(job_id, safe='')}/events"
        with self._http.stream("GET", path, headers=headers) as response:
            if response.status_code != httpx2.codes.OK:
                response.read()
                raise _error(response)
            yield from parse_events(response.iter_lines())

    def _call(self, method: str, path: str, expected: Set[str], **options: Any) -> Json:
        """Return the body of the answer, with at least the ``expected`` fields."""
        try:
            response = self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"no answer from {self.base_url}: {reason} (is `headrace up` running?)") from error
        if response.is_error:
            raise _error(response)
        try:
            body = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            body = None
        if not isinstance(body, dict) or not body.keys() >= expected:
            raise Unavailable(f"{self.base_url} answered, but not as Headrace does")
        if warning := response.headers.get("headrace-warning"):
            self._on_warning(warning)
        return body


def parse_events(lines: Iterable[str]) -> Iterator[Event]:
    """Parse server-sent events (WHATWG), as far as Headrace uses them."""
    fields: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
        elif fields:
            data = orjson.loads("\n".join(fields.get("data", ["{}"])))
            yield Event(id="".join(fields.get("id", [])), name="".join(fields.get("event", [])), data=data)
            fields = {}


def _host(base_url: str) -> str:
    try:
        parts = urlsplit(base_url)
        if parts.scheme in {"http", "https"} and parts.hostname:
            return parts.hostname
    except ValueError:
        pass
    raise SettingsError(f"HEADRACE_API_URL: not an address like http://127.0.0.1:8000 (got {base_url!r})")


def _error(response: httpx2.Response) -> HeadraceError:
    """Return the error in the server's answer."""
    try:
        body: Mapping[str, Any] = orjson.loads(response.content)["error"]
        message, code = str(body["message"]), body.get("code")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message, code = f"the server answered {response.status_code} {response.reason_phrase}", None
    match response.status_code:
        case httpx2.codes.UNAUTHORIZED:
            return Unauthenticated(message, code=code)
        case httpx2.codes.NOT_FOUND:
            return NotFound(message, code=code)
        case httpx2.codes.TOO_MANY_REQUESTS:
            return RateLimited(message, code=code, retry_after_s=float(response.headers.get("retry-after", 1)))
        case status if status >= httpx2.codes.INTERNAL_SERVER_ERROR:
            return Unavailable(message, code=code)
        case _:
            return RequestError(message, code=code)
