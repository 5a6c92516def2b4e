"""A very small inference server with OpenAI's chat completions, for trying the queue without a GPU.

Like a real one it computes a few requests at a time, and it refuses the others with 503.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORDS = ("the", "mill", "turns", "as", "long", "as", "the", "river", "runs")
STEP_S = 0.05


class SmallServer(ThreadingHTTPServer):
    """Listens on a free port of this machine. ``most_running``: the largest number of requests at a time so far."""

    daemon_threads = True

    def __init__(self, slots: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._lock = threading.Lock()
        self._slots = slots
        self._running = 0
        self.most_running = 0
        self.num_refused = 0

    @property
    def url(self) -> str:
        """The address without ``/v1``."""
        return f"http://127.0.0.1:{self.server_port}"

    def enter(self) -> bool:
        """Take a slot; return False if none is free."""
        with self._lock:
            if self._running == self._slots:
                self.num_refused += 1
                return False
            self._running += 1
            self.most_running = max(self.most_running, self._running)
            return True

    def leave(self) -> None:
        """Give the slot back."""
        with self._lock:
            self._running -= 1


class _Handler(BaseHTTPRequestHandler):
    server: SmallServer

    def do_GET(self) -> None:
        self._json(200, {"object": "list", "data": [{"id": "small", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.server.enter():
            self._json(503, {"error": {"message": "no slot is free"}})
            return
        streamed = bool(body.get("stream"))
        try:
            self._compute(streamed)
        finally:
            # Before the end is sent: a caller that has read it may send its next request at once.
            self.server.leave()
        self._finish(streamed)

    def _compute(self, streamed: bool) -> None:
        if streamed:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
        for word in WORDS:
            time.sleep(STEP_S)
            if streamed:
                self._event({"choices": [{"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}]})

    def _finish(self, streamed: bool) -> None:
        if not streamed:
            message = {"role": "assistant", "content": " ".join(WORDS)}
            self._json(200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": _USAGE})
            return
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], "usage": _USAGE})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, value: object) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()

    def _json(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


_USAGE = {"prompt_tokens": 8, "completion_tokens": len(WORDS), "total_tokens": 8 + len(WORDS)}


@contextmanager
def small_server(slots: int = 4) -> Iterator[SmallServer]:
    """Yield a server that listens."""
    server = SmallServer(slots)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
