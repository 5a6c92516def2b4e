"""How the tests call the API: bodies, server-sent events, and reading stored rows."""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.jobs.claims import claim
from headrace.store.jobs.sweeps import sweep_leases

PROMPT = {"model": "tiny", "input": {"prompt": "hello"}}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def submit(api: httpx2.Client, **fields: Any) -> str:
    """Submit a job and return its id."""
    response = api.post("/v1/jobs", json=PROMPT | fields)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


@contextmanager
def cut_off(api: httpx2.Client, path: str, body: dict[str, Any], num_blanks: int = 0) -> Iterator[None]:
    """Send a request with blanks behind its JSON, and close its connection after the block, without an answer."""
    content = api.build_request("POST", path, json=body).content + b" " * num_blanks
    request = api.build_request("POST", path, content=content, headers={"Content-Type": "application/json"})
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection((api.base_url.host, api.base_url.port or 0)) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + request.content)
        yield


def num_jobs(db: Database) -> int:
    with db.begin() as connection:
        return int(connection.execute(text("SELECT count(*) FROM jobs")).scalar_one())


def state_of(db: Database, job_id: str) -> str:
    with db.begin() as connection:
        return str(connection.execute(text("SELECT state FROM jobs WHERE id = :id"), {"id": job_id}).scalar_one())


def bury(db: Database, job_id: str, queue: str = "tiny@1") -> str:
    """Let workers die of the job until it is given up."""
    is_suspect = False
    while claim(db, "mortal", queue, [job_id], 0, suspects=is_suspect):
        sweep_leases(db)
        is_suspect = True
    return job_id


@dataclass(frozen=True)
class Sse:
    """One event as a client sees it."""

    id: str
    name: str
    data: Any


def parse(body: bytes) -> list[Sse]:
    """Read a whole stream; comments are left out."""
    return [_event(block) for block in split(body)]


def split(body: bytes) -> list[bytes]:
    """Return the stream's events as their bytes, without pings: these come when the machine was slow."""
    blocks = body.split(b"\n\n")
    assert blocks.pop() == b"", "the stream ended inside an event"
    events = [re.sub(rb"\A(:[^\n]*(\n|\Z))+", b"", block) for block in blocks]
    return [event + b"\n\n" for event in events if event]


def _event(block: bytes) -> Sse:
    fields = dict(line.split(": ", 1) for line in block.decode().strip().split("\n"))
    return Sse(fields.get("id", ""), fields.get("event", ""), json.loads(fields["data"]))


class LiveStream:
    """A stream that is read event by event while it is being written."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self._chunks = response.iter_raw()
        self._buffer = b""
        self.body = b""

    def next(self) -> Sse:
        """Wait for the next event."""
        while b"\n\n" not in self._buffer:
            self.more()
        block, _, self._buffer = self._buffer.partition(b"\n\n")
        return self.next() if block.startswith(b":") else _event(block + b"\n\n")

    def until(self, name: str) -> list[Sse]:
        """Read up to and with the event of this name."""
        events = [self.next()]
        while events[-1].name != name:
            events.append(self.next())
        return events

    def rest(self) -> bytes:
        """Read to the end; return the whole body since the start."""
        for chunk in self._chunks:
            self.body += chunk
        return self.body

    def more(self) -> None:
        """Wait for the next bytes."""
        chunk = next(self._chunks)
        self.body += chunk
        self._buffer += chunk


@contextmanager
def streaming(api: httpx2.Client, job_id: str, last_event_id: str | None = None) -> Iterator[LiveStream]:
    """Follow a job."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    with api.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200, response.read()
        yield LiveStream(response)


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """Return the error; it must have the one shape, on Anthropic's routes within Anthropic's."""
    body = response.json()
    if response.request.url.path.startswith("/v1/messages"):
        assert (body.pop("type"), body.pop("request_id")) == ("error", response.headers["request-id"])
    assert set(body) == {"error"}
    error = body["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert error["message"]
    assert response.headers["x-request-id"].startswith("req_")
    return dict(error)
