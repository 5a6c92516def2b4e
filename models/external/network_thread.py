"""The thread that talks to an inference server: one asyncio loop, one task for each request.

    send ──▶ task ──▶ pieces or one error, to the request's callback
               └── end: the connection is closed, and the server is asked to abort the request

Aborts that are due together are sent together. A request that ends by itself is not aborted.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

from headrace.models.engine.requests import EngineError
from headrace.models.external.upstream import Piece, Upstream, UpstreamLost, UpstreamRequest

log = logging.getLogger(__name__)

_CLOSE_S = 5.0  # for the last aborts, when the thread stops

OnEvent = Callable[[Piece | EngineError], None]


class NetworkThread:
    """``send`` and ``end`` may be called from any thread, and before ``start``. Callbacks run on this thread.

    ``watch`` runs on the loop until the thread stops.
    """

    def __init__(self, upstream: Upstream, watch: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._upstream = upstream
        self._watch = watch
        self._loop = asyncio.new_event_loop()
        self._open: dict[str, asyncio.Task[None]] = {}  # requests that the server may still compute
        self._tasks: set[asyncio.Task[None]] = set()
        self._aborts: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._to_abort: list[str] = []
        self._is_closed = False
        self._thread = threading.Thread(target=self._run_loop, name="network", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def send(self, request: UpstreamRequest, on_event: OnEvent) -> None:
        """Send a request. ``on_event`` gets its pieces; the last event has a finish reason or is an error."""
        self._call(lambda: self._begin(request, on_event))

    def end(self, request_id: str) -> None:
        """End a request. No event follows from then on, except those that are under way."""
        self._call(lambda: self._end(request_id))

    def stop(self, timeout_s: float) -> None:
        """End all requests inside the server, close the connections, and stop the thread."""
        self._call(lambda: self._spawn(self._close(), self._closing))
        if not self._thread.is_alive():
            self._run_loop_once()
        elif self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _call(self, action: Callable[[], object]) -> None:
        if not self._is_closed:
            self._loop.call_soon_threadsafe(action)

    def _run_loop(self) -> None:
        self._spawn(self._watch(), self._tasks)
        self._loop.run_forever()
        self._loop.close()

    def _run_loop_once(self) -> None:
        """Close what a thread that was never started has opened: nothing but the loop."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.close()

    def _spawn(self, work: Coroutine[Any, Any, None], into: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        into.add(task)
        task.add_done_callback(into.discard)
        return task

    def _begin(self, request: UpstreamRequest, on_event: OnEvent) -> None:
        self._open[request.id] = self._spawn(self._run(request, on_event), self._tasks)

    async def _run(self, request: UpstreamRequest, on_event: OnEvent) -> None:
        error: EngineError | None = None
        try:
            async with aclosing(self._upstream.generate(request)) as pieces:
                async for piece in pieces:
                    if piece.finish is not None and self._is_open(request):
                        del self._open[request.id]
                    on_event(piece)
        except EngineError as cause:
            error = cause
        except Exception as cause:
            log.exception("upstream_failed request_id=%s", request.id)
            error = UpstreamLost(f"the answer of the inference server could not be read ({type(cause).__name__})")
            error.__cause__ = cause
        if self._is_open(request):
            self._end(request.id)
            on_event(error or UpstreamLost("the inference server ended the stream before the request's end"))

    def _is_open(self, request: UpstreamRequest) -> bool:
        """Return True unless the request of this task has ended; another one may have its id by then."""
        return self._open.get(request.id) is asyncio.current_task(self._loop)

    def _end(self, request_id: str) -> None:
        task = self._open.pop(request_id, None)
        if task is None:
            return
        if task is not asyncio.current_task(self._loop):
            task.cancel()
        self._to_abort.append(request_id)
        if len(self._to_abort) == 1:
            self._spawn(self._abort(), self._aborts)

    async def _abort(self) -> None:
        request_ids, self._to_abort = self._to_abort, []
        try:
            await self._upstream.abort(request_ids)
        except EngineError as error:
            log.warning("abort_failed requests=%d reason=%s", len(request_ids), error)

    async def _close(self) -> None:
        """End everything, and stop the loop."""
        self._is_closed = True
        for request_id in [*self._open]:
            self._end(request_id)
        try:
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.gather(*self._aborts, return_exceptions=True)
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                await self._upstream.close()
        except TimeoutError:
            log.warning("close_timed_out aborts=%d", len(self._aborts))
        finally:
            self._loop.stop()
