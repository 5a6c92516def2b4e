"""A proxy that closes the connection of the first try of every POST, after the server has answered.

The client sees a broken connection and retries; the job exists by then.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2

_WITHOUT = frozenset({"host", "connection", "content-length", "transfer-encoding", "accept-encoding"})


@contextmanager
def cutting(api_url: str) -> Iterator[str]:
    """Yield the address of a proxy for ``api_url`` that drops the first answer to each body."""
    seen: set[bytes] = set()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _WITHOUT}
            answer = httpx2.post(f"{api_url}{self.path}", content=body, headers=headers, timeout=120, trust_env=False)
            with lock:
                is_first = body not in seen
                seen.add(body)
            if is_first:
                self.connection.close()
                return
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name.lower() not in _WITHOUT | {"content-encoding"}:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            """Log nothing: the runner prints a table."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
