"""How a caller speaks to each contestant: submit, look, cancel and read, over HTTP. Records nothing."""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import httpx2

_STATES = {
    **dict.fromkeys(("succeeded", "completed", "incomplete"), "succeeded"),
    **dict.fromkeys(("failed", "expired"), "failed"),
    "cancelled": "cancelled",
}


class Look(NamedTuple):
    """A job as its owner sees it. ``state``: succeeded, failed, cancelled; None while it has not ended."""

    state: str | None
    text: str | None


class Event(NamedTuple):
    """What a reader of a stream gets. ``kind``: ``token`` adds the text, ``restart`` replaces all by it, or ``end``."""

    id: str
    kind: str
    text: str


_turns = count()


class Away(Exception):
    """No answer, or one that is no success."""


class NotReached(Away):
    """Nobody listened: nothing can have been accepted."""


@dataclass(frozen=True)
class Caller:
    """A JSON API with the paths of the thin FastAPIs of ``apps``; subclasses speak others.

    ``ports``: of one API, or of several that are asked by turns. ``streams``, ``cancels``: whether there is such a way.
    """

    http: httpx2.AsyncClient
    ports: Sequence[int]
    streams: bool = False
    cancels: bool = True

    async def submit(self, order: str, num: int) -> str:
        """Return the id of the accepted job. Raises Away."""
        return str((await self._ask("POST", "/jobs", {"order": order, "tokens": num}))["id"])

    async def look(self, job_id: str) -> Look:
        """Return how it stands. Raises Away."""
        job = await self._ask("GET", f"/jobs/{job_id}")
        return Look(_STATES.get(job["status"]), job["text"])

    async def cancel(self, job_id: str) -> None:
        """Ask for it. Raises Away."""
        await self._ask("POST", f"/jobs/{job_id}/cancel")

    async def read(self, job_id: str, last: str) -> AsyncIterator[Event]:
        """Yield the stream's events behind the id ``last``, until this connection ends. Raises Away."""
        headers = {"Last-Event-ID": last} if last else {}
        try:
            async with self.http.stream("GET", self._url(self._stream_path(job_id)), headers=headers) as answer:
                if not answer.is_success:
                    raise Away(str(answer.status_code))
                event_id = name = ""
                async for line in answer.aiter_lines():
                    key, _, value = line.partition(": ")
                    if key == "id":
                        event_id = value
                    elif key == "event":
                        name = value
                    elif key == "data" and (event := self._event(event_id, name, json.loads(value))):
                        yield event
        except (httpx2.HTTPError, ValueError) as error:
            raise Away(repr(error)) from error

    def _stream_path(self, job_id: str) -> str:
        return f"/jobs/{job_id}/stream"

    def _event(self, event_id: str, name: str, data: Any) -> Event | None:
        return Event(event_id, name, data["text"])

    def _url(self, path: str) -> str:
        port = self.ports[next(_turns) % len(self.ports)]
        return f"http://127.0.0.1:{port}{path}"

    async def _ask(self, method: str, path: str, body: object = None) -> Any:
        try:
            answer = await self.http.request(method, self._url(path), json=body)
            return answer.raise_for_status().json()
        except httpx2.ConnectError as error:
            raise NotReached(repr(error)) from error
        except (httpx2.HTTPError, ValueError, KeyError) as error:
            raise Away(repr(error)) from error


@dataclass(frozen=True)
class HeadraceCaller(Caller):
    """Headrace's own API. The side effect is a webhook at the job's end, with the job's own URL."""

    effects_url: str = ""

    async def submit(self, order: str, num: int) -> str:
        body = {
            "model": "clockwork",
            "input": {"messages": [{"role": "user", "content": order}]},
            "sampling": {"max_tokens": num, "temperature": 0},
            "webhook": {"url": f"{self.effects_url}/{order}", "events": ["job.succeeded"]},
        }
        return str((await self._ask("POST", "/v1/jobs", body))["id"])

    async def look(self, job_id: str) -> Look:
        job = await self._ask("GET", f"/v1/jobs/{job_id}")
        return Look(_STATES.get(job["status"]), (job.get("output") or {}).get("text"))

    async def cancel(self, job_id: str) -> None:
        await self._ask("POST", f"/v1/jobs/{job_id}/cancel")

    def _stream_path(self, job_id: str) -> str:
        return f"/v1/jobs/{job_id}/events"

    def _event(self, event_id: str, name: str, data: Any) -> Event | None:
        kind = name.removeprefix("job.")
        if kind in _STATES:
            return Event(event_id, "end", "")
        kinds = {"delta": "token", "restarted": "restart"}
        return Event(event_id, kinds[kind], data.get("text", "")) if kind in kinds else None


@dataclass(frozen=True)
class LitellmCaller(Caller):
    """OpenAI's Responses in the background, kept in Redis by LiteLLM's proxy. Text so far is read by polling."""

    async def submit(self, order: str, num: int) -> str:
        body = {"model": "clockwork", "input": order, "max_output_tokens": num, "background": True, "stream": False}
        return str((await self._ask("POST", "/v1/responses", body))["id"])

    async def look(self, job_id: str) -> Look:
        job = await self._ask("GET", f"/v1/responses/{job_id}")
        parts = [part for item in job.get("output") or [] for part in item.get("content") or []]
        return Look(_STATES.get(job["status"]), "".join(part.get("text") or "" for part in parts))

    async def cancel(self, job_id: str) -> None:
        await self._ask("POST", f"/v1/responses/{job_id}/cancel")
