"""A client that never gives up: the same request again under its key, and a stream resumed where it was cut.

It knows the API from outside only, as users do, and keeps what it saw for the tests to judge.
"""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
PATIENCE_S = 90.0
_AGAIN_S = 0.2


@dataclass
class Seen:
    """What one reader saw of a job's stream, over all its connections."""

    text: str = ""
    cursors: list[tuple[int, int, int]] = field(default_factory=list)
    steps: list[tuple[str, str]] = field(default_factory=list)
    num_restarts: int = 0
    num_connections: int = 0
    end: dict[str, Any] | None = None

    @property
    def is_ordered(self) -> bool:
        """True if no event came twice or out of order."""
        return all(earlier < later for earlier, later in zip(self.cursors, self.cursors[1:], strict=False))


class Client:
    """One API, one key. Safe to use from many threads."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self._http = httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx2.Timeout(20.0, connect=2.0),
            limits=httpx2.Limits(max_connections=256),
            trust_env=False,
        )
        self._lock = threading.Lock()
        self.num_failed_tries = 0

    def close(self) -> None:
        """Drop the connections."""
        self._http.close()

    def once(self, method: str, path: str, **request: Any) -> httpx2.Response:
        """Send a request, whatever comes of it. Raises httpx2.TransportError."""
        return self._http.request(method, path, **request)

    def insist(self, method: str, path: str, **request: Any) -> httpx2.Response:
        """Send a request again until it is answered with less than 500."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                response = self._http.request(method, path, **request)
            except httpx2.TransportError as error:
                failure = repr(error)
            else:
                if response.status_code < 500:
                    return response
                failure = f"{response.status_code} {response.text}"
            with self._lock:
                self.num_failed_tries += 1
            assert time.monotonic() < deadline, f"{method} {path}: no answer within {PATIENCE_S:g} s: {failure}"
            time.sleep(_AGAIN_S)

    def submit(self, model: str, prompt: str, max_tokens: int, *, key: str | None = None, **fields: Any) -> str:
        """Submit until it is accepted; return the job's id."""
        sampling = {"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True}
        body = {"model": model, "input": {"prompt": prompt}, "sampling": sampling, **fields}
        response = self.insist("POST", "/v1/jobs", json=body, headers={} if key is None else {"Idempotency-Key": key})
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def follow(self, job_id: str) -> Seen:
        """Read the job's stream to its terminal event, coming back with the last id whenever it is cut."""
        seen, last_id = Seen(), ""
        deadline = time.monotonic() + PATIENCE_S
        while seen.end is None:
            assert time.monotonic() < deadline, f"the stream of {job_id} did not end: {seen}"
            seen.num_connections += 1
            try:
                for event_id, name, data in self._events(job_id, last_id):
                    last_id = event_id
                    _note(seen, event_id, name, data)
            except (httpx2.TransportError, httpx2.HTTPStatusError):
                time.sleep(_AGAIN_S)
        return seen

    def _events(self, job_id: str, last_id: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        with self._http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
            response.raise_for_status()
            fields: dict[str, str] = {}
            for line in response.iter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "data" in fields:
                    yield fields["id"], fields["event"].removeprefix("job."), json.loads(fields["data"])
                    fields = {}


def _note(seen: Seen, event_id: str, name: str, data: dict[str, Any]) -> None:
    epoch, _, rest = event_id.partition("-")
    seq, _, steps = rest.partition(".")
    seen.cursors.append((int(epoch), int(seq), int(steps or 0)))
    if name == "restarted":
        seen.text, seen.num_restarts = data["text"], seen.num_restarts + 1
    elif name == "delta":
        seen.text += data["text"]
    elif name.startswith("step."):
        seen.steps.append((name, data["name"]))
    elif name in TERMINAL:
        seen.end = data
