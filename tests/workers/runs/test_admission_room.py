"""The room of an engine as a worker asks for it: the mean need of the last jobs, spare slots, and reserved engines."""

import threading
from typing import Any

import pytest

from headrace.workers.runs.engine_admission import EngineAdmission, LoopWaker, TicketState
from tests.processes import wait_for
from tests.workers.engine_stub import EngineStub


class Asked(EngineStub):
    """An engine that notes its questions, and has room or not."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int, bool]] = []
        self.has_room = True

    def can_admit(self, num_prompt: int, max_tokens: int, *, count: int = 1, is_ahead: bool = False) -> bool:
        self.asked.append((num_prompt, max_tokens, count, is_ahead))
        return self.has_room


def admission_of(engine: Asked, **sizes: int) -> EngineAdmission:
    return EngineAdmission(engine, **{"max_jobs": 10, "max_slots": 4, **sizes})


def enter(admission: EngineAdmission, num_prompt: int, max_tokens: int) -> Any:
    ticket = admission.take()
    with admission.working_on(ticket):
        admission.entered(num_prompt, max_tokens)
    return ticket


def test_a_job_on_the_way_needs_as_much_as_the_mean_of_the_last_ones() -> None:
    engine = Asked()
    admission = admission_of(engine)
    assert admission.has_room()
    enter(admission, 10, 3)
    enter(admission, 21, 4)
    admission.take()
    assert admission.has_room()
    assert engine.asked == [(1, 1, 1, False), (16, 4, 2, False)], "means are rounded up, and both are counted"
    engine = Asked()
    many = admission_of(engine, max_jobs=200, max_slots=200)
    for number in range(65):
        enter(many, 0 if number == 0 else 64, 64)
    assert many.has_room()
    assert engine.asked[-1] == (64, 64, 1, False), "of the last 64"


def test_the_fast_lane_has_slots_of_its_own_and_the_engine_knows_it() -> None:
    engine = Asked()
    admission = admission_of(engine, max_slots=2, num_spare=1)
    tickets = [enter(admission, 1, 1) for _ in range(2)]
    assert (admission.has_room(), admission.has_spare_room()) == (False, True)
    assert engine.asked[-1] == (1, 1, 1, True)
    tickets.append(enter(admission, 1, 1))
    assert admission.has_spare_room() is False
    with admission.working_on(tickets[0]):
        admission.left()
    assert (admission.has_room(), admission.has_spare_room()) == (False, True)
    assert (admission.num_taken, admission.num_messages) == (3, 3)


@pytest.mark.parametrize(("slots", "choices"), [(1, 1), (3, 1), (4, 2), (9, 4), (10_000, 16)])
def test_the_choices_of_a_job_leave_half_of_the_slots(slots: int, choices: int) -> None:
    found = admission_of(Asked(), max_slots=slots).choices_at_once
    assert found == choices


def test_an_engine_that_takes_nothing_is_known() -> None:
    engine = Asked()
    admission = admission_of(engine)
    assert (admission.is_able, admission.can_begin, engine.asked) == (True, True, [(1, 1, 1, False)])
    engine.why_not, engine.has_room = "its server is away", False
    assert (admission.is_able, admission.can_begin) == (False, False)
    assert (admission.has_credit(), admission.full.is_set()) == (False, True)


def test_a_gap_is_taken_only_when_no_job_is_left() -> None:
    admission = admission_of(Asked())
    ticket = admission.take()
    with admission.reserved(gap_within_s=0.0) as is_reserved:
        assert (is_reserved, admission.is_reserved) == (False, False)
    admission.give_back(ticket)
    with admission.reserved(gap_within_s=0.0) as is_reserved:
        assert (is_reserved, admission.is_reserved) == (True, True)
        late = admission.take()
        assert (late.state, admission.has_room()) == (TicketState.BLOCKED, False)
    with admission.working_on(late):
        assert admission.wait_for_turn()
    assert late.state is TicketState.PREPARING
    admission.give_back(late)
    admission.close()
    with admission.reserved(gap_within_s=0.0) as is_reserved:
        assert not is_reserved
    assert (admission.is_closed, admission.take_without_message()) == (True, None)


def test_who_pauses_is_woken_by_the_next_change() -> None:
    admission = admission_of(Asked())
    begun, woken = threading.Event(), threading.Event()

    def pause() -> None:
        begun.set()
        admission.pause(600.0)
        woken.set()

    thread = threading.Thread(target=pause, daemon=True)
    thread.start()
    assert begun.wait(30)

    def is_woken() -> bool:
        admission.give_back(admission.take())
        return woken.is_set()

    wait_for(is_woken, "a job that ends wakes it")
    thread.join(30)


def test_a_loop_is_woken_only_while_it_waits() -> None:
    waker, woken = LoopWaker(), list[str]()
    waker.wait_for_room()
    waker.room_made()
    waker.attach(lambda: woken.append("woken"))
    waker.room_made()
    assert woken == []
    waker.wait_for_room()
    waker.found_room()
    waker.room_made()
    assert woken == []
    waker.wait_for_room()
    for _ in range(2):
        waker.room_made()
    assert woken == ["woken"]
    waker.wake()
    assert woken == ["woken"] * 2
