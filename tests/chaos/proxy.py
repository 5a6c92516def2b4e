"""A TCP proxy between two processes that simulates network faults.

Independent of the protocol. All proxies of a run share one event loop in their own thread, so a slow client cannot slow
a connection by accident.

    pass       as they come                      delay      each chunk waits ``delay_s``
    slow       at ``slow_bytes_per_s``           half_open  accepted and swallowed; nothing comes back
    cut        all closed, none accepted         reset      all reset once, then as they come
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Coroutine
from enum import StrEnum
from typing import Any, TypeVar

R = TypeVar("R")
_CHUNK = 1 << 16
_NO_LINGER = struct.pack("ii", 1, 0)


class Mode(StrEnum):
    """Modes of a proxy."""

    PASS = "pass"
    DELAY = "delay"
    SLOW = "slow"
    HALF_OPEN = "half_open"
    CUT = "cut"


class FaultProxy:
    """Listens on a port of this machine and speaks to the Unix socket ``upstream``."""

    def __init__(self, name: str, upstream: str) -> None:
        self.name = name
        self.upstream = upstream
        self.port = 0
        self.num_accepted = 0
        self.delay_s = 0.05
        self.slow_bytes_per_s = 20_000
        self._mode = Mode.PASS
        self._links: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._server: asyncio.Server | None = None

    @property
    def num_open(self) -> int:
        """How many connections go through it now."""
        return len(self._links)

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_CHUNK)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        await self.reset()

    async def set_mode(self, mode: Mode) -> None:
        """Change the mode from now on; ``cut`` also closes open connections."""
        swallowed = self._mode is Mode.HALF_OPEN and mode is not Mode.HALF_OPEN
        self._mode = mode
        if mode is Mode.CUT or swallowed:
            # After dropped bytes a connection can only be closed: more data would corrupt its protocol.
            await self.reset()

    async def reset(self) -> None:
        """Reset every open connection: the peer sees an error, not an end."""
        for link in list(self._links):
            for writer in link:
                _abort(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_accepted += 1
        if self._mode is Mode.CUT:
            _abort(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(self.upstream, limit=_CHUNK)
        except OSError:
            _abort(writer)
            return
        link = (writer, far_writer)
        self._links.add(link)
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        except OSError:
            # One side was reset. Reset the other too, or it would wait for ever.
            for end in link:
                _abort(end)
        finally:
            self._links.discard(link)
            for end in link:
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK):
            if self._mode is Mode.HALF_OPEN:
                continue
            await self._linger(len(chunk))
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    async def _linger(self, num_bytes: int) -> None:
        if self._mode is Mode.DELAY:
            await asyncio.sleep(self.delay_s)
        elif self._mode is Mode.SLOW:
            await asyncio.sleep(num_bytes / self.slow_bytes_per_s)


def _abort(writer: asyncio.StreamWriter) -> None:
    found = writer.get_extra_info("socket")
    if found is not None and found.family == socket.AF_INET:
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()


class ProxyThread:
    """Runs proxies on an event loop of its own; its methods may be called from any other thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._proxies: list[FaultProxy] = []
        self._thread.start()

    def add(self, name: str, upstream: str) -> FaultProxy:
        """Start a proxy and return it with its port."""
        proxy = FaultProxy(name, upstream)
        self._call(proxy.start())
        self._proxies.append(proxy)
        return proxy

    def set_mode(self, proxy: FaultProxy, mode: Mode) -> None:
        """Change a proxy's behaviour."""
        self._call(proxy.set_mode(mode))

    def reset(self, proxy: FaultProxy) -> None:
        """Reset a proxy's connections."""
        self._call(proxy.reset())

    def stop(self) -> None:
        """Close every proxy and end the thread."""
        for proxy in self._proxies:
            self._call(proxy.stop())
        self._call(_cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


async def _cancel_all() -> None:
    others: list[Awaitable[object]] = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()  # type: ignore[attr-defined]
    await asyncio.gather(*others, return_exceptions=True)
