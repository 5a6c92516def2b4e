"""The gate: how many messages may be taken, and the hooks of kombu and Celery that it hangs on."""

import socket
import threading
from types import SimpleNamespace
from typing import Any

from kombu.asynchronous import Hub
from kombu.transport.virtual import QoS

from headrace.workers.celery.consumer import ask_before_consuming, wake
from headrace.workers.runs.engine_admission import EngineAdmission, Ticket
from tests.processes import WAIT_S
from tests.workers.engine_stub import EngineStub


class Blocks(EngineStub):
    """An engine with ``num_blocks`` blocks of 16 tokens, of which ``promised`` are taken."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.promised = 0

    def can_admit(self, num_prompt: int, max_tokens: int, *, count: int = 1, is_ahead: bool = False) -> bool:
        return self.promised + count * -(-(num_prompt + max_tokens) // 16) <= self.num_blocks


def admission_of(engine: Blocks, *, max_jobs: int = 1000, max_slots: int = 1000) -> EngineAdmission:
    return EngineAdmission(engine, max_jobs=max_jobs, max_slots=max_slots)


def enter(admission: EngineAdmission, engine: Blocks, tokens: int) -> Any:
    ticket = admission.take()
    with admission.working_on(ticket):
        engine.promised += -(-tokens // 16)
        admission.entered(tokens // 2, tokens - tokens // 2)
    return ticket


def test_nothing_is_known_before_the_first_job_so_they_come_one_at_a_time() -> None:
    engine = Blocks(256)
    admission = admission_of(engine)
    first = admission.take()
    assert not admission.has_credit()
    with admission.working_on(first):
        admission.entered(60, 4)
    assert admission.has_credit()


def test_a_job_that_waits_outside_of_the_engine_uses_a_thread_alone() -> None:
    admission = admission_of(Blocks(256), max_jobs=2, max_slots=1)
    reading = admission.take()
    with admission.working_on(reading), admission.outside():
        assert admission.has_credit(), "also before the first job has reached the engine"
        other = admission.take()
        assert not admission.has_credit(), "there are two threads"
        admission.give_back(other)
    assert not admission.has_credit(), "it is on its way to the only slot"


def test_jobs_on_the_way_are_counted_by_the_mean_need() -> None:
    engine = Blocks(256)
    admission = admission_of(engine)
    enter(admission, engine, 61)  # 4 blocks
    taken = 0
    while admission.has_credit():
        admission.take()
        taken += 1
    assert taken == 63, "256 blocks at 4 a job: 64 with the one inside"


def test_jobs_inside_are_counted_by_the_engine_alone() -> None:
    engine = Blocks(8)
    admission = admission_of(engine)
    enter(admission, engine, 64)
    second = enter(admission, engine, 64)
    assert not admission.has_credit()
    with admission.working_on(second):
        admission.left()
    admission.entered(32, 32)
    assert second.state.name == "FINISHING", "the thread has another job now"
    engine.promised -= 4
    assert admission.has_credit(), "a job whose outcome is being written holds nothing of the engine"


def test_slots_count_what_is_on_the_way() -> None:
    engine = Blocks(1000)
    admission = admission_of(engine, max_slots=3)
    enter(admission, engine, 16)
    admission.take()
    assert admission.has_credit()
    admission.take()
    assert not admission.has_credit()


def test_threads_bound_what_is_taken_even_after_the_engine() -> None:
    engine = Blocks(1000)
    admission = admission_of(engine, max_jobs=1)
    ticket = enter(admission, engine, 16)
    with admission.working_on(ticket):
        admission.left()
    assert not admission.has_credit()
    admission.give_back(ticket)
    assert admission.has_credit()


def test_a_message_that_never_reached_the_engine_leaks_no_credit() -> None:
    engine = Blocks(4)
    admission = admission_of(engine)
    for _ in range(100):
        admission.give_back(admission.take())
    assert admission.has_credit()
    assert admission.num_taken == 0


def test_whoever_was_refused_is_woken_once_there_is_room() -> None:
    engine = Blocks(4)
    admission = admission_of(engine)
    woken: list[str] = []
    admission.waker.attach(lambda: woken.append("woken"))
    ticket = enter(admission, engine, 64)
    assert woken == [], "nobody was refused yet"
    assert not admission.has_credit()
    engine.promised = 0
    admission.waker.room_made()
    admission.waker.room_made()
    assert woken == ["woken"]
    admission.give_back(ticket)


def test_room_that_is_made_while_one_looks_for_it_wakes() -> None:
    """Else nothing is taken until the next job ends, although there is room."""

    class Ending(Blocks):
        def can_admit(self, num_prompt: int, max_tokens: int, *, count: int = 1, is_ahead: bool = False) -> bool:
            found = super().can_admit(num_prompt, max_tokens, count=count)
            admission.waker.room_made()
            return found

    woken: list[bool] = []
    admission = admission_of(Ending(0))
    admission.waker.attach(lambda: woken.append(True))
    assert not admission.has_credit()
    assert woken == [True]


def test_closed_takes_nothing() -> None:
    admission = admission_of(Blocks(100))
    admission.close()
    assert not admission.has_credit()


def test_kombu_asks_can_consume_of_an_instance() -> None:
    """The hook: an attribute of the channel's QoS that kombu looks up at every call."""
    qos = QoS(SimpleNamespace(do_restore=False), prefetch_count=1)
    admission = admission_of(Blocks(10))
    ask_before_consuming(qos, admission)
    assert qos.can_consume()
    admission.close()
    assert not qos.can_consume()


def test_the_prefetch_limit_still_holds() -> None:
    qos = QoS(SimpleNamespace(do_restore=False), prefetch_count=1)
    ask_before_consuming(qos, admission_of(Blocks(10)))
    qos.append(SimpleNamespace(), "tag")
    assert not qos.can_consume()


def test_the_event_loop_is_woken_from_another_thread() -> None:
    """The hook: ``hub.call_soon`` ends a poll that would otherwise last until the next timer."""
    hub = Hub()
    silent, other_end = socket.socketpair()
    try:
        hub.add_reader(silent, lambda: None)  # without one the loop naps instead of polling
        hub.call_later(600, lambda: None)
        loop = hub.create_loop()
        turned = threading.Event()

        def turn() -> None:
            next(loop)  # polls
            turned.set()

        threading.Thread(target=turn, daemon=True).start()
        assert not turned.wait(0.2), "nothing to do: it waits"
        wake(hub)
        assert turned.wait(WAIT_S)
    finally:
        hub.close()
        silent.close()
        other_end.close()


class TestAlone:
    """A crash suspect runs alone."""

    def test_the_door_is_shut_and_whoever_is_in_may_end(self) -> None:
        engine = Blocks(100)
        admission = admission_of(engine)
        inside = enter(admission, engine, 16)
        assert not admission.is_reserved
        with admission.reserved():
            assert admission.is_reserved
            assert not admission.has_credit()
            assert admission.take_without_message() is None
            assert not admission.wait_empty(0.01)
            admission.give_back(inside)
            assert admission.wait_empty(0.01)
            with admission.alone():
                assert admission.num_taken == 1
                assert not admission.wait_empty(0)
        assert admission.num_taken == 0
        assert admission.has_credit()
        assert not admission.is_reserved

    def test_a_message_that_comes_all_the_same_waits_at_the_door(self) -> None:
        admission = admission_of(Blocks(100))
        went_on: list[bool] = []

        def run(ticket: Ticket) -> None:
            with admission.working_on(ticket):
                went_on.append(admission.wait_for_turn())
            admission.give_back(ticket)

        with admission.reserved():
            late = threading.Thread(target=run, args=(admission.take(),))
            late.start()
            assert admission.wait_empty(WAIT_S), "it is not counted as company"
            with admission.alone():
                late.join(0.1)
                assert went_on == []
                assert admission.num_taken == 2
        late.join(WAIT_S)
        assert went_on == [True]
        assert admission.num_taken == 0

    def test_whoever_was_in_before_need_not_wait(self) -> None:
        admission = admission_of(Blocks(100))
        ticket = admission.take()
        with admission.reserved(), admission.working_on(ticket):
            assert admission.wait_for_turn()
        with admission.reserved():
            assert admission.wait_for_turn(), "nor a thread that holds no ticket"

    def test_a_worker_that_stops_lets_nobody_in_beside_it(self) -> None:
        admission = admission_of(Blocks(100))
        with admission.reserved(), admission.alone():
            ticket = admission.take()
            with admission.working_on(ticket):
                admission.close()
                assert not admission.wait_for_turn()
            assert not admission.wait_empty(60), "and whoever waits for a gap is told at once"

    def test_the_event_loop_is_woken_when_the_door_opens(self) -> None:
        admission = admission_of(Blocks(100))
        woken: list[str] = []
        admission.waker.attach(lambda: woken.append("woken"))
        with admission.reserved():
            assert not admission.has_credit()
            assert woken == []
        assert woken == ["woken"]


def test_a_place_without_a_message_counts_but_is_no_sign_of_redis() -> None:
    admission = admission_of(Blocks(4), max_jobs=2)
    assert admission.take_without_message() is not None
    assert admission.take_without_message() is None, "nothing is known before the first job"
    assert (admission.num_taken, admission.num_messages) == (1, 0)
    admission.take()
    assert (admission.num_taken, admission.num_messages) == (2, 1)
    assert admission.take_without_message() is None
