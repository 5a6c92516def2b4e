"""When a supervisor starts a process again."""

from typing import Any

from headrace.store.errors import HeadraceError
from headrace.store.supervisor import NOT_AGAIN, Supervisor
from tests.refusals import Naming


class Ended:
    """A child that has ended so, again and again."""

    def __init__(self, exit_code: int | None, said: str = "a reason") -> None:
        self.exit_code, self._said = exit_code, said

    def log_tail(self) -> str:
        return self._said


class Process:
    """A supervised process that cannot be started for a while."""

    name = "worker"

    def __init__(self, child: Any, *failures: str) -> None:
        self.child = child
        self._failures = list(failures)
        self.num_starts = 0

    def start(self) -> None:
        self.num_starts += 1
        if self._failures:
            raise HeadraceError(self._failures.pop())

    def stop(self) -> None: ...


def test_pauses_between_restarts_grow_to_half_a_minute() -> None:
    now, said = [0.0], list[str]()
    process = Process(Ended(2))
    supervisor = Supervisor([process], said.append, clock=lambda: now[0])
    pauses = []
    for _ in range(7):
        supervisor.tend()
        pauses.append(float(said[-1].rpartition(" in ")[2].removesuffix(" s")))
        now[0] += pauses[-1]
        supervisor.tend()
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert said[:2] == [Naming("worker", "(exit 2): a reason", "1 s"), Naming("worker started")]
    now[0] += 60
    supervisor.tend()
    assert said[-1].endswith("again in 30 s"), "a minute is not over a minute"
    now[0] += 30
    supervisor.tend()
    now[0] += 60.5
    supervisor.tend()
    assert said[-1].endswith("again in 1 s")


def test_a_process_that_must_not_be_restarted_is_left_and_a_failed_start_is_tried_again() -> None:
    now, said = [0.0], list[str]()
    given_up, failing, well = Process(Ended(NOT_AGAIN)), Process(Ended(-9), "no port", "no disk"), Process(Ended(None))
    supervisor = Supervisor([given_up, failing, well], said.append, clock=lambda: now[0])
    for at in (0.0, 1.0, 2.9, 3.0, 7.0):
        now[0] = at
        supervisor.tend()
    assert said == [
        Naming("worker", "a reason", "not started"),
        Naming("worker", "(signal 9)", "1 s"),
        Naming("no disk", "2 s"),
        Naming("no port", "4 s"),
        Naming("worker started"),
    ]
    assert (given_up.num_starts, failing.num_starts, well.num_starts) == (0, 3, 0)
