"""A job's stream over as many connections as it takes, without I/O: each event once, in order."""

import json
import time

import httpx2

from headrace.client import answers
from headrace.client.errors import ApiUnavailable, ClientError
from headrace.client.job_data import StreamEvent
from headrace.client.retries import Retries

_STEADY_S = 5.0


class JobStream:
    """The state of one reader: its cursor, and whether it has the last event.

    For each connection: ``headers``, ``open``, ``read`` for every server-sent event, and if it ended before
    ``has_ended``, ``pause_s``.
    """

    def __init__(self, path: str, after: str | None, *, base_url: str, retries: Retries) -> None:
        self.path = path
        self.has_ended = False
        self._base_url = base_url
        self._cursor = after
        self._retries = retries
        self._opened_at: float | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the next connection."""
        return {"Last-Event-ID": self._cursor} if self._cursor else {}

    def open(self, response: httpx2.Response) -> None:
        """Check the head of an answer; that of an error has its body. Raises ClientError."""
        if response.is_error:
            raise answers.error_of(response)
        if response.status_code == httpx2.codes.NO_CONTENT:
            self.has_ended = True  # the cursor is that of the last event
            return
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            raise ApiUnavailable(f"{self._base_url} answered, but not as Headrace does", status=response.status_code)
        self._opened_at = time.monotonic()
        self._retries.be_patient()

    def read(self, sent: httpx2.ServerSentEvent) -> StreamEvent:
        """Return an event, and move the cursor to it."""
        self._retries.reset()
        self._cursor = sent.id or self._cursor
        event = StreamEvent(sent.id, sent.event, json.loads(sent.data or "{}"))
        self.has_ended = event.is_terminal
        return event

    def pause_s(self, failure: httpx2.TransportError | ClientError | None) -> float:
        """Return the pause before the next connection, after one that failed or (None) just ended.

        Raises ClientError if there is none.
        """
        # While a job waits, a stream may be silent for longer than a proxy keeps its connection.
        if self._opened_at is not None and time.monotonic() - self._opened_at > _STEADY_S:
            self._retries.reset()
        self._opened_at = None
        if isinstance(failure, ClientError):
            return self._retries.pause_s(failure)
        failure = failure or httpx2.RemoteProtocolError("the stream ended before the job")
        return self._retries.pause_s(answers.lost(failure, self._base_url))
