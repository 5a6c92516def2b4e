"""A webhook receiver for the demo: verifies signatures and collects the ids of ended jobs."""

import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from headrace.client import InvalidSignature, verify_webhook

_MAX_BYTES = 64 * 1024


class Receiver:
    """The jobs of received events. All events are refused until ``trust`` was called."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.num_refused = 0
        self._secret: str | None = None
        self._jobs: set[str] = set()
        self._changed = threading.Condition()

    def trust(self, secret: str) -> None:
        """Accept events signed with ``secret``."""
        self._secret = secret

    def take(self, body: bytes, headers: dict[str, str]) -> bool:
        """Record the job of an event with a valid signature. Returns False for other events."""
        with self._changed:
            try:
                if self._secret is None:
                    raise InvalidSignature("no secret yet")
                self._jobs.add(verify_webhook(body, headers, self._secret)["data"]["id"])
            except InvalidSignature:
                self.num_refused += 1
                return False
            self._changed.notify_all()
            return True

    def wait_for(self, jobs: Collection[str], timeout_s: float) -> set[str]:
        """Wait for events of all ``jobs``, for at most ``timeout_s``. Returns the jobs of received events."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._changed.wait_for(lambda: self._jobs.issuperset(jobs), deadline - time.monotonic())
            return set(self._jobs)


@contextmanager
def running_receiver() -> Iterator[Receiver]:
    """Yield a receiver that listens on this machine only."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_address[1]}/webhooks")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(min(int(self.headers.get("content-length", 0)), _MAX_BYTES))
            known = receiver.take(body, {name.lower(): value for name, value in self.headers.items()})
            self.send_response(204 if known else 401)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """No log lines: the demo prints its own."""

    server.RequestHandlerClass = Handler
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="receiver")
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
