"""GCRA on a real Redis and in memory: accepted, refused, and the retry time."""

import math
import threading
from pathlib import Path

import pytest
import redis

from headrace.cli.local.valkey import LocalValkey
from headrace.store.redis.connection import connect
from headrace.store.redis.rate_limiter import Decision, Limiter, Spend


@pytest.fixture
def limiter(redis_client: redis.Redis) -> Limiter:
    return Limiter(redis_client)


def test_a_burst_fits_and_the_next_is_told_when(limiter: Limiter) -> None:
    # A unit comes back after a minute: no pause between two calls is one.
    decisions = [limiter.check("a", per_minute=1, cost=1, burst=3) for _ in range(4)]
    assert [decision.allowed for decision in decisions] == [True, True, True, False]
    assert [decision.remaining for decision in decisions] == [2, 1, 0, 0]
    # Less by what the calls took.
    assert 0 < decisions[3].retry_after_s <= 60
    assert 120 < decisions[3].reset_s <= 180
    assert 0 < decisions[0].reset_s <= 60, "the first call has spent one unit, which is whole again after a minute"


def test_a_request_costs_what_it_says(limiter: Limiter) -> None:
    assert limiter.check("a", per_minute=60, cost=4000, burst=6000).remaining == 2000
    refused = limiter.check("a", per_minute=60, cost=3000, burst=6000)
    assert not refused.allowed
    # A unit a second, so that a pause between the calls is a few of them: a thousand are missing.
    assert 2000 <= refused.remaining < 2060
    assert 940 < refused.retry_after_s <= 1000
    assert limiter.check("a", per_minute=60, cost=1900, burst=6000).allowed


def test_a_refusal_spends_nothing(limiter: Limiter) -> None:
    assert limiter.check("a", per_minute=1, cost=1, burst=1).allowed
    waits = [limiter.check("a", per_minute=1, cost=1, burst=1).retry_after_s for _ in range(5)]
    assert max(waits) <= 60


def test_it_comes_back_with_time(limiter: Limiter, redis_client: redis.Redis) -> None:
    def passes(seconds: float) -> None:
        """As if so much of Redis's time had passed."""
        redis_client.incrby("headrace:limit:a", -int(seconds * 1e6))

    assert limiter.check("a", per_minute=1, cost=2, burst=2).allowed
    refused = limiter.check("a", per_minute=1, cost=2, burst=2)
    assert not refused.allowed
    passes(refused.retry_after_s / 2)
    assert not limiter.check("a", per_minute=1, cost=2, burst=2).allowed
    passes(refused.retry_after_s / 2)
    assert limiter.check("a", per_minute=1, cost=2, burst=2).allowed


def test_keys_do_not_share_and_are_forgotten_when_full(limiter: Limiter, redis_client: redis.Redis) -> None:
    assert limiter.check("a", per_minute=1, cost=1, burst=1).allowed
    assert limiter.check("b", per_minute=1, cost=1, burst=1).allowed
    assert 0 < redis_client.pttl("headrace:limit:a") <= 60_002


def test_what_can_never_fit_is_told(limiter: Limiter) -> None:
    assert limiter.check("a", per_minute=60, cost=61) == Decision(False, 0, math.inf, 0.0)


def test_many_clients_together_get_no_more_than_the_burst(redis_client: redis.Redis) -> None:
    allowed: list[bool] = []

    def spend() -> None:
        limiter = Limiter(redis_client)
        allowed.extend(limiter.check("a", per_minute=1, cost=1, burst=20).allowed for _ in range(10))

    threads = [threading.Thread(target=spend) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(allowed), sum(allowed)) == (60, 20)


def test_without_redis_half_the_rate_is_kept_in_process() -> None:
    now = 50.0
    with connect("redis://127.0.0.1:1/0") as nowhere:
        limiter = Limiter(nowhere, clock=lambda: now)
        assert sum(limiter.check("a", per_minute=60, cost=1, burst=10).allowed for _ in range(20)) == 5
        refused = limiter.check("a", per_minute=60, cost=1, burst=10)
        assert refused.retry_after_s == pytest.approx(2.0)
        now += 2.0
        assert limiter.check("a", per_minute=60, cost=1, burst=10).allowed
        assert not limiter.check("a", per_minute=60, cost=1, burst=10).allowed
        # A request that the burst allows is not refused for ever because the burst was halved.
        assert limiter.check("b", per_minute=60, cost=10, burst=10).allowed


def test_redis_is_asked_again_when_it_is_back(redis_client: redis.Redis) -> None:
    now = 0.0
    limiter = Limiter(redis_client, clock=lambda: now)
    redis_client.set("headrace:limit:a", "not a number")
    assert limiter.check("a", per_minute=60, cost=1, burst=4).remaining == 1
    redis_client.delete("headrace:limit:a")
    assert limiter.check("a", per_minute=60, cost=1, burst=4).remaining == 0
    now = 0.9
    assert not limiter.check("a", per_minute=60, cost=1, burst=4).allowed, "its own share is spent"
    now = 1.0
    assert limiter.check("a", per_minute=60, cost=1, burst=4).remaining == 3


def test_the_limits_of_a_request_are_decided_with_one_question(limiter: Limiter, redis_client: redis.Redis) -> None:
    limiter.check("warm", per_minute=60)
    before = redis_client.info("commandstats")["cmdstat_evalsha"]["calls"]
    decisions = limiter.check_all([Spend("a", 60, 2, 3), Spend("b", 60, 60)])
    assert [(decision.allowed, decision.remaining) for decision in decisions] == [(True, 1), (True, 0)]
    assert redis_client.info("commandstats")["cmdstat_evalsha"]["calls"] == before + 1
    assert limiter.check_all([]) == []


def test_a_group_is_spent_as_a_whole_or_not_at_all(limiter: Limiter) -> None:
    for _ in range(3):
        key, tenant = limiter.check_all([Spend("key", 1, 1, 5), Spend("tenant", 1, 1, 3)])
        assert key.allowed
        assert tenant.allowed
    key, tenant = limiter.check_all([Spend("key", 1, 1, 5), Spend("tenant", 1, 1, 3)])
    assert (key.allowed, tenant.allowed) == (True, False)
    assert (key.remaining, tenant.remaining) == (2, 0)
    assert [limiter.check("key", per_minute=1, burst=5).remaining for _ in range(2)] == [1, 0], "nothing was spent"


@pytest.mark.parametrize("num_processes", [1, 2, 5])
def test_without_redis_all_processes_together_stay_under_the_limit(server_folder: Path, num_processes: int) -> None:
    valkey = LocalValkey(server_folder / "kv", server_folder / "valkey.log")
    valkey.start()
    now = 100.0
    clients = [connect(valkey.url, retries=0) for _ in range(num_processes)]
    limiters = [Limiter(each, num_processes=lambda: num_processes, clock=lambda: now) for each in clients]
    try:
        # One of them has used three fifths when Redis goes: it knows, the others do not.
        assert sum(limiters[0].check("a", per_minute=100).allowed for _ in range(60)) == 60
    finally:
        valkey.stop()
    let_in = [sum(limiter.check("a", per_minute=100).allowed for _ in range(100)) for limiter in limiters]
    assert let_in[0] == 20 // num_processes, "two fifths of its part were left"
    assert sum(let_in) <= 50
    few = [sum(limiter.check("few", per_minute=5).allowed for _ in range(9)) for limiter in limiters]
    assert min(few) >= 1, "a limit of few is not none"
    assert sum(few) <= 5
    fresh = sum(limiter.check("b", per_minute=100).allowed for limiter in limiters for _ in range(100))
    assert 0 < fresh <= 50
    big = sum(limiter.check("c", per_minute=100, cost=60).allowed for limiter in limiters for _ in range(3))
    assert 60 * big <= 100
    now += 60.0
    refilled = sum(limiter.check("b", per_minute=100).allowed for limiter in limiters for _ in range(100))
    assert 0 < refilled <= 50
    for client in clients:
        client.close()
