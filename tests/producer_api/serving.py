"""A real API server on a free port: in a thread of the test's process, or as the process that users start."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import uvicorn

from headrace.producer_api.app import create_app
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.http_server import server_config
from headrace.store.settings import Settings
from headrace.store.tracing.tracing import OFF, Tracing
from tests.processes import Process, StartProcess, python
from tests.roles import as_api

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For ``verify=``: a client of a plain address does not read the system's authorities, which takes longer than a
request."""


class _Server(uvicorn.Server):
    """Keeps its loop, which a test can hold."""

    loop: asyncio.AbstractEventLoop

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().serve(sockets)


class ApiServer:
    """The application under uvicorn in a thread. ``start`` returns once it answers."""

    def __init__(self, settings: Settings, port: int = 0, tracing: Tracing = OFF) -> None:
        self.app = create_app(as_api(settings), tracing)
        self._listener = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        config = server_config(self.app, settings)
        config.timeout_graceful_shutdown = 3
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True)

    @property
    def runtime(self) -> Runtime:
        runtime: Runtime = self.app.state.runtime
        return runtime

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._server.loop

    def start(self) -> None:
        self._thread.start()
        httpx2.get(f"{self.url}/healthz", timeout=60, verify=NO_TLS).raise_for_status()

    def drain(self) -> None:
        """Run the process's first action on a stop signal."""
        self.runtime.draining.set()

    def stop(self) -> None:
        self.drain()
        self._server.should_exit = True
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()


@contextmanager
def serving(settings: Settings, port: int = 0, tracing: Tracing = OFF) -> Iterator[ApiServer]:
    """Run a server for these settings; port 0: a free one."""
    server = ApiServer(settings, port, tracing)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """The whole environment of a process with these services."""
    return {
        "DATABASE_URL": as_api(settings).database_url,
        "REDIS_URL": settings.redis_url,
        "HEADRACE_API_PORT": "0",
        "HEADRACE_HOME": str(settings.home),
        **more,
    }


def start_api(start: StartProcess, environ: dict[str, str]) -> Process:
    """Start ``python -m headrace.producer_api``, which may not be ready yet."""
    return start(python("-m", "headrace.producer_api"), environ)


def url_of(process: Process) -> str:
    """Wait until the API listens; return its address."""
    return f"http://127.0.0.1:{process.wait_event('api_started')['port']}"
