"""Receivers that are paused after failures, and tenants that wait for their turn."""

from dataclasses import replace

from tests.workers.webhooks.test_deliveries import SENT
from workers.webhooks.receiver_fairness import ReceiverBreaker, ReceiverQueues


def test_a_breaker_knows_who_was_paused_since_the_last_answer() -> None:
    breaker = ReceiverBreaker(threshold=2, first_s=5, longest_s=300)
    breaker.failed("a", 10.0)
    assert (breaker.has_paused("a"), breaker.has_paused("b")) == (False, False)
    breaker.failed("a", 10.0)
    assert (breaker.has_paused("a"), breaker.blocked_for_s("a", 12.0)) == (True, 3.0)
    breaker.failed("a", 1000.0)
    assert breaker.blocked_for_s("a", 1000.0) == 10.0
    breaker.answered("a")
    assert breaker.has_paused("a") is False
    usual = ReceiverBreaker()
    for _ in range(30):
        usual.failed("a", 0.0)
    assert usual.blocked_for_s("a", 0.0) == 300.0
    usual.overloaded("b", 0.0)
    assert usual.blocked_for_s("b", 0.0) == 5.0


def test_a_tenant_is_full_with_as_many_waiting_as_may_run() -> None:
    queues = ReceiverQueues(max_running=2, max_of_tenant=3, max_together=4)
    for number in range(4):
        if number == 2:
            assert (queues.full(), queues.full_tenants()) == (frozenset({"ten_1 whe_1"}), frozenset())
        queues.add(replace(SENT, id=f"evt_{number}", endpoint_id="whe_1" if number < 2 else "whe_2"))
    assert queues.full_tenants() == {"ten_1"}
    first = queues.next()
    assert first is not None
    assert (queues.num_waiting, queues.full_tenants(), queues.full()) == (3, {"ten_1"}, {"ten_1 whe_2"})
    assert [one.id for one in queues.drop("ten_1 whe_2")] == ["evt_2", "evt_3"]
    assert (queues.num_waiting, [one.id for one in queues.drop()]) == (1, ["evt_1"])
    queues.done(first)
    assert queues.next() is None
