"""The encoder's loop: every request gets an outcome and its own vectors, whatever is computed with it."""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from math import inf

import pytest

from headrace.models.engine.encoder_engine import EncodeConfig, EncodeEngine
from headrace.models.engine.requests import (
    EncodeOutput,
    EncodeRequest,
    EncodeRow,
    EngineError,
    EngineStopped,
    FinishReason,
    NumericalError,
    OutOfMemory,
    RequestInvalid,
    RequestTooLong,
    StepFailed,
)
from headrace.models.engine.runner import RunnerBroken
from headrace.models.fakes.fake_encoder import FakeEncoder, fake_vector
from tests.models.engine.rig import WAIT_S, Clock, Ticking
from tests.processes import wait_for
from tests.threads import threads_named

BAD = (13,)
Fault = Callable[[Sequence[EncodeRow]], None]


class Gate:
    """Holds the encoder inside its first pass until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, _rows: Sequence[EncodeRow]) -> None:
        self.entered.set()
        assert self.opened.wait(WAIT_S)


class Start:
    """Start engines and stop their threads at the end of the test."""

    def __init__(self) -> None:
        self.engines: list[EncodeEngine] = []

    def __call__(
        self,
        fault: Fault | None = None,
        *,
        encoder: FakeEncoder | None = None,
        step_tokens: int = 64,
        max_slots: int = 8,
    ) -> EncodeEngine:
        config = EncodeConfig(max_slots, step_tokens=step_tokens, pass_s=inf if step_tokens == 64 else 1e-12)
        self.engines.append(EncodeEngine(encoder or FakeEncoder(fault=fault), config))
        self.engines[-1].start()
        return self.engines[-1]


@pytest.fixture
def start() -> Iterator[Start]:
    started, others = Start(), threads_named("engine")
    yield started
    for engine in started.engines:
        engine.stop(WAIT_S)
    assert threads_named("engine") <= others


def ask(name: str, *inputs: tuple[int, ...], **changes: object) -> EncodeRequest:
    return EncodeRequest(name, inputs or ((1, 2, 3),), **changes)  # type: ignore[arg-type]


def raising(error: Exception) -> Fault:
    def fault(rows: Sequence[EncodeRow]) -> None:
        if any(row.tokens == BAD for row in rows):
            raise error

    return fault


def failure(future: Future[EncodeOutput]) -> EngineError:
    error = future.exception(WAIT_S)
    assert isinstance(error, EngineError)
    return error


def test_each_request_gets_its_own_vectors_in_its_inputs_order(start: Start) -> None:
    engine = start()
    asked = [
        ask(f"r{n}", *[tuple(range(1, 2 + (n * 7 + m) % 50)) for m in range(n * 5 + 1)], options=n or None)
        for n in range(8)
    ]
    futures = [engine.submit(one) for one in asked]
    for one, future in zip(asked, futures, strict=True):
        got = future.result(WAIT_S)
        assert got.finish_reason is FinishReason.STOP
        assert got.vectors == tuple(fake_vector(tokens, one.options) for tokens in one.inputs)
        assert got.num_tokens == one.num_tokens
    stats = engine.stats()
    assert (stats.completed, stats.failed, stats.running + stats.waiting) == (8, 0, 0)
    assert stats.prompt_tokens == sum(one.num_tokens for one in asked)
    assert stats.peak_batch > 1


@pytest.mark.parametrize(
    ("raised", "expected"), [(RuntimeError("broken"), StepFailed), (MemoryError("full"), OutOfMemory)]
)
def test_a_pass_that_raises_fails_the_culprit_alone(
    start: Start, raised: Exception, expected: type[EngineError]
) -> None:
    gate = Gate()
    fault = raising(raised)

    def both(rows: Sequence[EncodeRow]) -> None:
        gate(rows)
        fault(rows)

    engine = start(both)
    first = engine.submit(ask("first"))
    assert gate.entered.wait(WAIT_S)
    good = [engine.submit(ask(f"good{n}", (n, n), (n,))) for n in range(5)]
    bad = engine.submit(ask("bad", (1,), BAD, (2,)))
    gate.opened.set()
    error = failure(bad)
    assert type(error) is expected
    assert error.retryable
    assert error.__cause__ is raised
    assert [one.result(WAIT_S).finish_reason for one in [first, *good]] == [FinishReason.STOP] * 6


def test_numbers_that_are_not_finite_fail_their_request_alone(start: Start) -> None:
    class Nan(FakeEncoder):
        def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
            vectors = super().run(rows)
            return [None if row.tokens == BAD else one for row, one in zip(rows, vectors, strict=True)]

    engine = start(encoder=Nan())
    good, bad = engine.submit(ask("good")), engine.submit(ask("bad", (1,), BAD))
    assert isinstance(failure(bad), NumericalError)
    assert good.result(WAIT_S).vectors == (fake_vector((1, 2, 3)),)


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.HANDED_BACK])
def test_a_request_that_is_ended_stops_before_the_next_step(start: Start, reason: FinishReason) -> None:
    gate = Gate()
    engine = start(gate)
    future = engine.submit(ask("long", *[(1,) * 60] * 50))
    assert gate.entered.wait(WAIT_S)
    assert engine.cancel("long", reason)
    assert engine.cancel("long", FinishReason.HANDED_BACK), "the first reason stays"
    gate.opened.set()
    ended = future.result(WAIT_S)
    assert (ended.finish_reason, ended.vectors, ended.num_tokens) == (reason, (), 60)
    assert not engine.cancel("long")


def test_a_late_request_ends_without_its_vectors() -> None:
    clock = Clock(100.0)
    engine = EncodeEngine(FakeEncoder(), EncodeConfig(), clock=clock)
    late, early = engine.submit(ask("late", deadline=99.0)), engine.submit(ask("early", deadline=101.0))
    engine.start()
    assert late.result(WAIT_S).finish_reason is FinishReason.DEADLINE
    assert early.result(WAIT_S).finish_reason is FinishReason.STOP
    engine.stop(WAIT_S)


def test_a_broken_device_ends_the_engine_and_everybody_is_told(start: Start) -> None:
    told: list[BaseException] = []
    engine = start(raising(RunnerBroken("gone")))
    engine.on_failed = told.append
    errors = [failure(engine.submit(ask("bad", BAD)))]
    wait_for(lambda: not engine.is_healthy(60), "its thread has ended")
    with pytest.raises(EngineStopped):
        engine.submit(ask("next"))
    assert [(type(error), error.progress is not None) for error in errors] == [(EngineStopped, True)]
    assert isinstance(told[0], RunnerBroken)
    assert not engine.is_healthy(60)


def test_a_stop_tells_those_who_wait_even_if_a_pass_hangs(start: Start) -> None:
    gate = Gate()
    engine = start(gate)
    hanging = engine.submit(ask("hanging"))
    assert gate.entered.wait(WAIT_S)
    assert not engine.is_healthy(0.0)
    engine.stop(0.01)
    assert isinstance(failure(hanging), EngineStopped)
    gate.opened.set()


class Passes:
    """Records the requests of each pass, and holds the one with this number until it is opened."""

    def __init__(self, number: int) -> None:
        self.gate = Gate()
        self.seen: list[set[str]] = []
        self._number = number

    def __call__(self, rows: Sequence[EncodeRow]) -> None:
        self.seen.append({row.request_id for row in rows})
        if len(self.seen) == self._number:
            self.gate(rows)


def test_a_short_request_waits_for_one_pass_of_a_long_one(start: Start) -> None:
    passes = Passes(3)
    engine = start(passes, step_tokens=4096)  # passes of 256 tokens: six of these inputs
    long = engine.submit(ask("long", *[(1,) * 40] * 300))
    assert passes.gate.entered.wait(WAIT_S)
    short = engine.submit(ask("short", (1,) * 4))
    passes.gate.opened.set()
    assert short.result(WAIT_S).finish_reason is FinishReason.STOP
    assert long.result(WAIT_S).finish_reason is FinishReason.STOP
    assert ["short" in one for one in passes.seen[:6]] == [False, False, False, True, False, False]
    assert len(passes.seen) in (50, 51), "no input was computed twice"


def test_what_a_request_has_left_and_what_passes_took_decide_the_next_passes() -> None:
    seen: list[str] = []
    encoder = FakeEncoder(fault=lambda rows: seen.append("".join(row.request_id for row in rows)))
    engine = EncodeEngine(encoder, EncodeConfig(step_tokens=1000))
    engine.submit(ask("o", *[(1,) * 300] * 4))
    engine.submit(ask("a", (1,) * 600, (1,) * 20))
    engine.step()
    engine.submit(ask("b", (1,) * 150))
    engine.step()
    assert seen == ["a", "o", "a", "oo", "b"], "with 620, 1200, 20, 900 and 150 tokens left; the oldest comes second"

    # Each pass takes 0.002 s by this clock. One of 256 tokens is the first; then about 1050 take 0.0082 s.
    engine = EncodeEngine(FakeEncoder(), EncodeConfig(step_tokens=4096, pass_s=0.0082), clock=Ticking())
    engine.submit(ask("long", *[(1,) * 64] * 128))
    for _ in range(2):
        engine.step()
    assert engine.stats().recent_batches == (*[4] * 16, *[16] * 4)


def test_the_oldest_request_gets_on_beside_arrivals_of_better_classes(start: Start) -> None:
    passes = Passes(1)

    def arriving(rows: Sequence[EncodeRow]) -> None:
        passes(rows)
        if len(passes.seen) < 40:
            number = len(passes.seen)
            later.append(engine.submit(ask(f"better{number}", *[(1,) * 200] * 5, class_rank=0)))

    later: list[Future[EncodeOutput]] = []
    passes.gate.opened.set()
    engine = start(arriving, step_tokens=4096, max_slots=1000)
    oldest = engine.submit(ask("oldest", *[(1,) * 240] * 10, class_rank=2))
    assert oldest.result(WAIT_S).finish_reason is FinishReason.STOP
    assert ["oldest" in one for one in passes.seen[:20]].count(True) == 10, "every second pass is its own"
    for one in later:
        one.result(WAIT_S)


def test_a_request_of_the_fast_lane_needs_a_slot_only(start: Start) -> None:
    gate = Gate()
    engine = start(gate)
    engine.submit(ask("long", *[(1,) * 60] * 50))
    assert gate.entered.wait(WAIT_S)
    assert not engine.can_admit(4, 0)
    assert engine.can_admit(4, 0, is_ahead=True)
    assert not engine.can_admit(4, 0, count=8, is_ahead=True)
    gate.opened.set()


def test_room_is_slots_and_what_waits_already(start: Start) -> None:
    gate, made_room = Gate(), threading.Event()
    engine = start(gate)
    engine.on_room = made_room.set
    assert engine.can_admit(10_000, 0), "when nothing waits, whatever it is"
    engine.submit(ask("first"))
    assert gate.entered.wait(WAIT_S)
    assert engine.can_admit(40, 0, count=4)
    assert not engine.can_admit(40, 0, count=5), "two steps' tokens wait at most"
    assert not engine.can_admit(1, 0, count=8), "eight slots, one taken"
    gate.opened.set()
    assert made_room.wait(WAIT_S)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (EncodeRequest("none", ()), RequestInvalid),
        (EncodeRequest("empty", ((1,), ())), RequestInvalid),
        (EncodeRequest("long", ((1,), (1,) * 9000)), RequestTooLong),
    ],
)
def test_what_can_never_be_computed_is_refused(start: Start, request_: EncodeRequest, error: type[EngineError]) -> None:
    with pytest.raises(error):
        start().submit(request_)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the policy SCHED_IDLE")
@pytest.mark.parametrize(("gives_way", "policy"), [(True, "SCHED_IDLE"), (False, "SCHED_OTHER")])
def test_an_engine_that_gives_way_computes_with_the_lowest_policy_and_leaves_other_threads_alone(
    gives_way: bool, policy: str
) -> None:
    found: list[int] = []
    encoder = FakeEncoder(fault=lambda _rows: found.append(os.sched_getscheduler(0)))
    engine = EncodeEngine(encoder, EncodeConfig(gives_way=gives_way))
    engine.start()
    engine.submit(ask("one")).result(WAIT_S)
    engine.stop(WAIT_S)
    assert found == [getattr(os, policy)]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_pass_that_gives_way_has_more_time_before_its_engine_is_stuck() -> None:
    gate = Gate()
    clock = Clock(0.0)
    engine = EncodeEngine(FakeEncoder(fault=gate), EncodeConfig(gives_way=True), clock=clock)
    engine.start()
    future = engine.submit(ask("slow"))
    assert gate.entered.wait(WAIT_S)
    clock.now = 10 * 60.0
    assert engine.is_healthy(60)
    clock.now += 1
    assert not engine.is_healthy(60)
    gate.opened.set()
    future.result(WAIT_S)
    engine.stop(WAIT_S)
