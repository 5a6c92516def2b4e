"""Calls side by side on threads of their own: each has one outcome, and one that hangs holds up no other."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from threading import Event

import pytest

from headrace.models.engine.call_engine import CallConfig, CallEngine
from headrace.models.engine.requests import (
    CallTimedOut,
    EncodeOutput,
    EncodeRequest,
    EncodeRow,
    FinishReason,
    NumericalError,
    RunnerFailed,
    StepFailed,
)
from tests.processes import WAIT_S, wait_for

NEVER_S = 3600.0


class Calls:
    """An encoder whose calls wait until the test lets them go, by the name in their options."""

    context_window = 100

    def __init__(self) -> None:
        self.gates = {name: Event() for name in ("a", "b", "c")}
        self.begun: set[str] = set()

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | Exception | None]:
        name = rows[0].options
        if name == "raise":
            raise ValueError("secret")
        if name == "refuse":
            return [RunnerFailed("no")]
        if name == "nan":
            return [None]
        self.begun.add(name)
        assert self.gates[name].wait(WAIT_S)
        return [name.encode()]


class Clock:
    """Time that passes only when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def calls() -> Iterator[Calls]:
    calls = Calls()
    yield calls
    for gate in calls.gates.values():
        gate.set()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(calls: Calls, clock: Clock) -> Iterator[CallEngine]:
    engine = CallEngine(calls, CallConfig(max_slots=2, timeout_s=10.0), clock=clock)
    engine.start()
    yield engine
    engine.stop(WAIT_S)


def submit(engine: CallEngine, name: str, deadline: float | None = None) -> Future[EncodeOutput]:
    return engine.submit(EncodeRequest(name, ((0, 0),), name, deadline))


def begun(calls: Calls, *names: str) -> None:
    wait_for(lambda: calls.begun == set(names), lambda: f"{names} began, not only {calls.begun}")


def test_calls_run_side_by_side_and_end_in_their_own_time(
    engine: CallEngine, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.models.engine.call_engine.TICK_S", NEVER_S)  # nothing waits for the next look
    first, second = submit(engine, "a"), submit(engine, "b")
    begun(calls, "a", "b")
    assert not engine.can_admit(1, 1)
    calls.gates["b"].set()
    found = second.result(WAIT_S)
    assert (found.vectors, found.finish_reason, found.num_tokens) == ((b"b",), FinishReason.STOP, 2)
    assert not first.done()
    calls.gates["a"].set()
    assert first.result(WAIT_S).vectors == (b"a",)
    wait_for(lambda: engine.can_admit(1, 1, count=2), "both slots are free")


def test_a_call_that_fails_fails_alone(engine: CallEngine, calls: Calls) -> None:
    waiting = submit(engine, "a")
    failed = submit(engine, "raise").exception(WAIT_S)
    assert isinstance(failed, StepFailed)
    assert "secret" not in str(failed)
    wait_for(lambda: engine.can_admit(1, 1), "its slot is free")
    assert isinstance(submit(engine, "refuse").exception(WAIT_S), RunnerFailed)
    calls.gates["a"].set()
    assert waiting.result(WAIT_S).vectors == (b"a",)


def test_what_hangs_ends_at_its_limits_and_keeps_its_slot(engine: CallEngine, calls: Calls, clock: Clock) -> None:
    cancelled, late = submit(engine, "a"), submit(engine, "b", deadline=5.0)
    begun(calls, "a", "b")
    assert engine.cancel("a")
    assert cancelled.result(WAIT_S).finish_reason is FinishReason.CANCELLED
    clock.now = 5.0
    assert late.result(WAIT_S).finish_reason is FinishReason.DEADLINE
    # Both threads still wait: there is no room, and nothing else runs here.
    assert not engine.can_admit(1, 1)
    assert not engine.is_healthy(NEVER_S)
    calls.gates["a"].set()
    wait_for(lambda: engine.can_admit(1, 1), "the slot of the thread that has returned is free")
    assert engine.is_healthy(NEVER_S)
    slow = submit(engine, "c")
    begun(calls, "a", "b", "c")
    clock.now = 15.0
    assert isinstance(slow.exception(WAIT_S), CallTimedOut)


def test_an_output_that_is_not_finite_fails_its_call(engine: CallEngine) -> None:
    with pytest.raises(NumericalError):
        submit(engine, "nan").result(WAIT_S)
