"""A TCP proxy that closes its first connections after some bytes of the answer."""

import socket
import socketserver
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


@contextmanager
def cut_proxy(api_url: str, cuts: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    """Yield the proxy's address and the cuts that are left: bytes after which the next connections end."""
    parts = urlsplit(api_url)
    left = list(cuts)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            allowed = left.pop(0) if left else 1 << 30
            with suppress(OSError), socket.create_connection((parts.hostname, parts.port or 80)) as far:
                threading.Thread(target=_copy, args=(self.request, far), daemon=True).start()
                while allowed > 0 and (data := far.recv(1 << 14)):
                    self.request.sendall(data[:allowed])
                    allowed -= len(data)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_address[1]}", left
        finally:
            proxy.shutdown()
            thread.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 14):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
