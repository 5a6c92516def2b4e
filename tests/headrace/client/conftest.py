"""A real API with a scripted worker, and both clients behind one face."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from headrace.client import AsyncClient, Client
from tests.producer_api.conftest import key, model, server, tenant, worker

__all__ = ["key", "model", "server", "tenant", "worker"]

Connect = Callable[..., Client]


class Blocking:
    """An ``AsyncClient`` whose coroutines run to their end at once."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self._client, self._runner = client, runner

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            found = getattr(self._client, name)(*args, **options)
            return self._each(found) if inspect.isasyncgen(found) else self._runner.run(found)

        return call

    def _each(self, events: Any) -> Iterator[Any]:
        try:
            while True:
                yield self._runner.run(anext(events))
        except StopAsyncIteration:
            return
        finally:
            self._runner.run(events.aclose())


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Make clients of one kind: ``connect(url, key, **options)``."""
    with ExitStack() as stack:

        def make(url: str, key: str, **options: Any) -> Any:
            if request.param == "sync":
                return stack.enter_context(Client(url, key, **options))
            blocking = Blocking(AsyncClient(url, key, **options), stack.enter_context(asyncio.Runner()))
            stack.callback(lambda: blocking.close())
            return blocking

        yield make


@pytest.fixture
def client(connect: Connect, server: Any, key: str) -> Client:
    """A client of the real API."""
    return connect(server.url, key)
