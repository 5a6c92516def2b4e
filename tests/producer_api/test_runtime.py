"""The parts of an API process: that a start and a stop reach each of them."""

from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from headrace.producer_api.runtime import API_THREADS, Runtime
from headrace.store.settings import Settings


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    """Parts that have opened nothing: there is neither a database nor a Redis."""
    return Runtime(
        Settings(database_url="postgresql://app@127.0.0.1:1/x", redis_url="redis://127.0.0.1:1/0").model_copy(
            update={"home": tmp_path, "ready_window": 77, "stream_ttl_s": 5}
        )
    )


class Part:
    """A part that notes its calls."""

    def __init__(self, told: list[str], name: str) -> None:
        self._told, self._name = told, name

    def __getattr__(self, method: str) -> Any:
        def note(_wait_s: float = 0) -> None:
            self._told.append(f"{self._name}.{method}")

        async def note_soon() -> None:
            note()

        return note_soon if self._name == "hub" else note


async def test_a_start_and_a_stop_reach_every_part(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    begun = ["redis_breaker", "live_processes", "enqueuer", "refresher", "hub", "loop_lag"]
    closed = ["health", "redis", "lists", "tracing", "db"]
    for name in (*begun, *closed):
        monkeypatch.setattr(runtime, name, Part(told, name))
    threads = anyio.to_thread.current_default_thread_limiter()
    monkeypatch.setattr(threads, "total_tokens", threads.total_tokens)
    await runtime.start()
    assert told == [f"{name}.start" for name in begun]
    assert threads.total_tokens == API_THREADS
    told.clear()
    assert not runtime.draining.is_set()
    await runtime.stop()
    assert runtime.draining.is_set()
    assert told == [
        *("loop_lag.stop", "hub.stop", "refresher.stop", "enqueuer.stop", "live_processes.stop", "redis_breaker.stop"),
        *("health.close", "redis.close", "lists.close", "tracing.stop", "db.close"),
    ], "the database is closed last"
