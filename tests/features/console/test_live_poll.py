"""The shared poll of the live figures: the events of each reader, and their end. Without Postgres and Redis."""

import asyncio
import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.console import live_poll
from headrace.features.console.live_poll import LivePoll
from headrace.producer_api.server.errors import Draining
from headrace.producer_api.server.sse import StreamAborted
from headrace.store.errors import Unavailable
from headrace.store.hosts.host_reports import HostReport
from headrace.store.redis import live_workers
from headrace.store.redis.live_workers import WorkerTick
from headrace.store.scheduling import backlog, queues
from headrace.store.scheduling.backlog import Backlog, Load, TenantBacklog
from headrace.store.scheduling.queues import QueueView
from headrace.store.scheduling.service_rate import Rate
from headrace.store.tenants import tenants

AT = datetime(2026, 1, 2, tzinfo=UTC)
QUEUE = QueueView("m@1", 0, 1, {"standard": Load(2, 30)}, 0, 2.0, None, None, None)
BACKLOG = Backlog(
    (TenantBacklog("m@1", "ten_a", 1, queued=Load(2, 30), announced=Load()),), {"m@1": Rate(1.0, 5.0)}, frozenset(), AT
)


class Sources:
    """Stands for Postgres and Redis: notes the calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.audiences: list[str | None] = []
        self.named: list[set[str]] = []
        self.after: list[str] = []
        self.ticks: list[tuple[float, WorkerTick]] = []
        self.away: set[str] = set()
        monkeypatch.setattr(live_poll, "PERIOD_S", 0.001)
        monkeypatch.setattr(live_poll, "read_hosts", self.hosts)
        monkeypatch.setattr(backlog, "read_backlog", lambda _db: BACKLOG)
        monkeypatch.setattr(queues, "view_queues", self.queues)
        monkeypatch.setattr(tenants, "read_names", self.names)
        monkeypatch.setattr(live_workers, "read_workers", lambda _client: [])
        monkeypatch.setattr(live_workers, "read_ticks", self.new_ticks)

    def hosts(self, _db: Any) -> list[HostReport]:
        if "hosts" in self.away:
            raise Unavailable("away")
        return [HostReport(name="mill", started_at=AT, budget_bytes=9)]

    def queues(self, _db: Any, _found: Backlog, *, tenant_id: str | None) -> list[QueueView]:
        if "queues" in self.away:
            raise Unavailable("away")
        self.audiences.append(tenant_id)
        return [QUEUE]

    def names(self, _db: Any, ids: set[str]) -> dict[str, str]:
        self.named.append(ids)
        return {"ten_a": "acme"}

    def new_ticks(self, _client: Any, after: str) -> tuple[list[tuple[float, WorkerTick]], str]:
        self.after.append(after)
        new, self.ticks = self.ticks, []
        return new, "7-0" if new else after


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Sources:
    return Sources(monkeypatch)


@pytest.fixture
def runtime() -> Any:
    metrics = SimpleNamespace(cache_hit_rate=lambda: 0.5)
    return SimpleNamespace(lists=SimpleNamespace(db=None), redis=None, metrics=metrics, draining=asyncio.Event())


async def until(events: AsyncGenerator[bytes], name: str) -> tuple[list[str], dict[str, Any]]:
    """Read until an event of this name; return the names, and the data of the last one."""
    names = []
    async for event in events:
        head, data, end = event.decode().split("\n", 2)
        names.append(head.removeprefix("event: "))
        assert end == "\n"
        if names[-1] == name:
            return names, json.loads(data.removeprefix("data: "))
    raise AssertionError(names)


async def test_the_history_is_sent_at_first_and_when_it_has_changed(sources: Sources, runtime: Any) -> None:
    events = LivePoll(runtime).follow(None)
    names, state = await until(events, "live")
    assert names == ["history", "live"]
    (queue,) = state["queues"]
    assert [(one["name"], one["jobs"]) for one in queue["tenants"]] == [("acme", 2)]
    assert (state["missing"], state["share"], state["cache_hit_rate"]) == ([], "all", 0.5)
    assert [one["name"] for one in state["hosts"]] == ["mill"]
    assert (await until(events, "live"))[0] == (await until(events, "live"))[0] == ["live"]
    now = datetime.now(UTC).timestamp()
    tick = WorkerTick(worker="w", queue="m@1", tokens={"ten_a": 50}, first_token_ms={}, running=1, slots=2)
    sources.ticks = [(now - 700, tick), (now - 300, tick)]
    names, history = await until(events, "history")
    assert set(names[:-1]) <= {"live"}
    assert [point["tokens_per_s"] for point in history["points"] if point["tokens_per_s"]] == [10.0]
    assert len(history["points"]) < 110, "nothing of the tick that is too old"
    await until(events, "live")
    assert (await until(events, "live"))[0] == ["live"]
    assert (sources.after[0], sources.after[-1]) == ("0-0", "7-0")
    runtime.draining.set()
    with pytest.raises(StreamAborted):
        await until(events, "the end")
    with pytest.raises(Draining):
        await LivePoll(runtime).snapshot(None)


async def test_each_reader_gets_the_share_of_its_own_tenant(sources: Sources, runtime: Any) -> None:
    poll = LivePoll(runtime)
    own, other = poll.follow("ten_a"), poll.follow("ten_a")
    _, state = await until(own, "live")
    assert (state["share"], state["hosts"], state["queues"][0]["tenants"]) == ("own", [], [])
    await until(other, "live")
    assert ({*sources.audiences}, sources.named) == ({"ten_a"}, [])
    whole = json.loads(await poll.snapshot(None))
    assert (whole.keys(), whole["state"]["share"]) == ({"state", "history"}, "all")
    assert {*sources.audiences} == {"ten_a", None}
    assert all(ids == {"ten_a"} for ids in sources.named)
    await other.aclose()
    assert (await until(own, "live"))[0][-1] == "live", "one reader is left"
    await own.aclose()
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
    num_reads = len(sources.audiences)
    again = poll.follow("ten_a")
    await until(again, "live")
    assert sources.audiences[num_reads:] == ["ten_a"], "without a reader nothing is read, and nothing old is kept"
    await again.aclose()


@pytest.mark.parametrize("away", [{"hosts"}, {"queues"}, {"hosts", "queues"}])
async def test_a_state_says_that_postgres_is_away_and_goes_on(sources: Sources, runtime: Any, away: set[str]) -> None:
    sources.away = away
    events = LivePoll(runtime).follow(None)
    _, state = await until(events, "live")
    assert state["missing"] == ["postgres"]
    assert (bool(state["queues"]), bool(state["hosts"])) == ("queues" not in away, "hosts" not in away)
    sources.away = set()
    while state["missing"]:
        _, state = await until(events, "live")
    assert ([one["name"] for one in state["queues"]], len(state["hosts"])) == (["m@1"], 1)
    await events.aclose()


async def test_no_reader_waits_for_a_poll_that_has_died(sources: Sources, runtime: Any) -> None:
    poll = LivePoll(runtime)
    events = poll.follow(None)
    await until(events, "live")
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    with pytest.raises(StreamAborted):
        await asyncio.wait_for(until(events, "the end"), 5)
    assert (await until(poll.follow(None), "live"))[0] == ["history", "live"], "the next reader starts it anew"
    runtime.draining.set()
