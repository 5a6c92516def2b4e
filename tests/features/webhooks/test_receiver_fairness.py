"""Tenants that wait for their turn."""

from dataclasses import replace

from headrace.features.webhooks.receiver_fairness import SLOW_S, ReceiverQueues
from tests.features.webhooks.test_deliveries import SENT


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


def test_a_stranger_does_not_wait_however_many_tenants_are_slow() -> None:
    """Eight threads for those that are quick, and eight for those that are slow."""
    queues = ReceiverQueues(max_running=2, max_of_tenant=4, max_together=6, max_slow=8)
    for number in range(64):
        name = f"slow_{number % 16}"
        queues.add(replace(SENT, id=f"evt_{number}", tenant_id=name, endpoint_id=name))
    running = [queues.next(0.0) for _ in range(8)]
    assert None not in running
    late = 14.0
    for round_ in range(6):
        for delivery in running:
            queues.done(delivery, late * (round_ + 1))
        running = [one for _ in range(16) if (one := queues.next(late * (round_ + 1))) is not None]
        stranger = replace(SENT, id=f"evt_new_{round_}", tenant_id=f"stranger_{round_}")
        queues.add(stranger)
        if round_ >= 2:
            assert sum(one.tenant_id.startswith("slow") for one in running) <= 8
            assert queues.next(late * (round_ + 1)) == stranger
            queues.done(stranger, late * (round_ + 1))


def test_a_delivery_that_turns_out_to_be_slow_makes_room_for_others() -> None:
    queues = ReceiverQueues(max_running=4, max_of_tenant=4, max_together=2, max_slow=8)
    for number in range(4):
        queues.add(replace(SENT, id=f"evt_{number}"))
    assert [queues.next(0.0) is not None for _ in range(3)] == [True, True, False]
    assert queues.next(SLOW_S) is None
    assert queues.next(SLOW_S + 0.1) is not None
