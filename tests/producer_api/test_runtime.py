"""The parts of an API process: which of them are the same, and that a start and a stop reach each of them."""

from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from headrace.producer_api.runtime import Runtime
from headrace.store.settings import Settings


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    """Parts that have opened nothing: there is neither a database nor a Redis."""
    return Runtime(
        Settings(database_url="postgresql://app@127.0.0.1:1/x", redis_url="redis://127.0.0.1:1/0").model_copy(
            update={"home": tmp_path, "api_threads": 23, "ready_window": 77, "stream_max_frames": 9, "stream_ttl_s": 5}
        )
    )


async def test_all_submissions_share_the_caches_and_limits_of_the_process(runtime: Runtime) -> None:
    made: Any = runtime
    parts = made.flow_submissions._parts
    assert made.pipeline_lines._parts is parts
    for name in ("settings", "db", "rate_limits", "catalog", "queue_limits", "enqueuer", "metrics", "policies"):
        assert getattr(parts, name) is getattr(runtime, name), name
    for name in ("digests", "live_processes"):
        assert getattr(parts, name) is getattr(runtime, name), name
    assert made.submissions.tenant_threads is parts.tenant_threads
    assert made.tool_threads is not parts.tenant_threads, "a tenant's slow server of MCP delays no submission"
    refreshed = (runtime.catalog.refresh, runtime.limits.refresh, runtime.policies.refresh)
    assert made.refresher._refreshes == refreshed
    assert made.rate_limits._limits is made.streams._limits is runtime.limits
    assert made.enqueuer._ready_window == 77
    assert made.db._engine.pool.size() == 16
    assert made.db.vault is made.hub._vault


async def test_the_hub_forgets_changed_keys_and_counts_its_errors(runtime: Runtime) -> None:
    made: Any = runtime
    assert made.hub._on_key_changed == runtime.authenticator.forget
    made.hub._on_error("log_entry")
    read = runtime.metrics.registry.get_sample_value
    assert read("headrace_hub_errors_total", {"what": "log_entry"}) == 1
    assert read("headrace_hub_connected") == 0
    options = made.redis.connection_pool.connection_kwargs
    assert (options["socket_timeout"], options["socket_connect_timeout"]) == (0.5, 0.5), "requests do without Redis"


class Part:
    """A part that notes its calls."""

    def __init__(self, told: list[str], name: str) -> None:
        self._told, self._name = told, name

    def __getattr__(self, method: str) -> Any:
        def note() -> None:
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
    assert threads.total_tokens == 23
    told.clear()
    assert not runtime.draining.is_set()
    await runtime.stop()
    assert runtime.draining.is_set()
    assert told == [
        *("loop_lag.stop", "hub.stop", "refresher.stop", "enqueuer.stop", "live_processes.stop", "redis_breaker.stop"),
        *("health.close", "redis.close", "lists.close", "tracing.stop", "db.close"),
    ], "the database is closed last"
