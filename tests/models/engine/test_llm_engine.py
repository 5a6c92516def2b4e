"""The engine's thread: every request gets an outcome, whatever the runner, the callbacks or a stop do meanwhile."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial

import pytest

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import (
    CompletionOutput,
    Delta,
    EngineError,
    EngineRequest,
    EngineStopped,
    FinishReason,
    NumericalError,
    OutOfMemory,
    StepFailed,
)
from headrace.models.engine.runner import RunnerBroken, Sampled, StepPlan
from headrace.models.engine.scheduling.scheduler import Scheduler
from headrace.models.fakes.fake import FakeRunner
from tests.models.engine.rig import WAIT_S, Bytes, Clock, Watched, alone, ask, check_answers
from tests.processes import wait_for
from tests.threads import threads_named

Start = Callable[..., LLMEngine]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start engines and stop their threads at the end of the test."""
    engines: list[LLMEngine] = []
    others = threads_named("engine")

    def start_one(
        runner: FakeRunner,
        *,
        max_slots: int = 8,
        step_tokens: int = 64,
        on_deltas: Callable[[list[Delta]], None] = lambda deltas: None,
    ) -> LLMEngine:
        engine = LLMEngine(runner, Bytes, EngineConfig(max_slots, step_tokens), on_deltas=on_deltas)
        engines.append(engine)
        engine.start()
        return engine

    yield start_one
    for engine in engines:
        engine.stop(WAIT_S)
    assert threads_named("engine") <= others


class Gate:
    """Holds the runner inside a step until it is opened; ``then`` is raised there."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.then: BaseException | None = None

    def __call__(self, plan: StepPlan) -> None:
        self.entered.set()
        assert self.opened.wait(WAIT_S)
        if self.then is not None:
            raise self.then

    def open(self, then: BaseException | None = None) -> None:
        self.then = then
        self.opened.set()


def test_many_threads_submit_and_each_gets_its_own_answer(start: Start) -> None:
    engine = start(FakeRunner(num_blocks=40, block_tokens=4))
    requests = [ask(f"question {n}", max_tokens=60, ignore_eos=n % 2 == 0) for n in range(48)]
    futures: dict[str, Future[CompletionOutput]] = {}

    def submit(mine: list[EngineRequest]) -> None:
        for request in mine:
            futures[request.id] = engine.submit(request)

    threads = [threading.Thread(target=submit, args=(requests[n::6],)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    check_answers(requests, [futures[request.id] for request in requests])
    stats = engine.stats()
    assert (stats.completed, stats.failed, stats.running, stats.waiting) == (48, 0, 0, 0)
    assert stats.free_blocks == stats.total_blocks == 40
    assert 1 < stats.mean_batch <= stats.peak_batch <= 8
    assert stats.output_tokens == sum(len(future.result(0).token_ids) for future in futures.values())
    assert stats.prompt_tokens == sum(len(request.prompt) for request in requests)
    assert max(stats.recent_batches) <= 8
    assert len(stats.recent_batches) <= 128


def test_the_lock_is_free_while_the_model_runs(start: Start) -> None:
    gate = Gate()
    engine = start(FakeRunner(fault=gate))
    first = engine.submit(ask("first"))
    assert gate.entered.wait(WAIT_S)
    request = ask("second")
    second = engine.submit(request)
    assert engine.stats().waiting == 1
    assert engine.can_admit(8, 8)
    assert engine.is_healthy(WAIT_S)
    assert engine.cancel(request.id)
    gate.open()
    assert second.result(WAIT_S).finish_reason is FinishReason.CANCELLED
    assert first.result(WAIT_S).finish_reason in {FinishReason.STOP, FinishReason.LENGTH}


def test_one_row_that_is_not_finite_fails_alone(start: Start) -> None:
    requests = [ask(f"row {n}", request_id=f"row-{n}") for n in range(6)]
    engine = start(FakeRunner(is_finite=lambda row: row.request.id != "row-3" or len(row.output) < 3))
    futures = [engine.submit(request) for request in requests]
    with pytest.raises(NumericalError):
        futures[3].result(WAIT_S)
    del requests[3], futures[3]
    check_answers(requests, futures)


class OutOfMemoryError(RuntimeError):
    """Named as torch names it."""


@pytest.mark.parametrize(
    ("raised", "kind", "code"),
    [
        (RuntimeError("broken kernel"), StepFailed, "worker_lost"),
        (MemoryError(), OutOfMemory, "out_of_memory"),
        (OutOfMemoryError("CUDA out of memory"), OutOfMemory, "out_of_memory"),
    ],
)
def test_a_row_whose_step_fails_when_it_is_alone_fails(
    start: Start, raised: Exception, kind: type[EngineError], code: str
) -> None:
    gate = Gate()
    engine = start(FakeRunner(fault=gate), max_slots=1)
    failed = engine.submit(ask("in the step"))
    assert gate.entered.wait(WAIT_S)
    waiting = ask("waiting")
    future = engine.submit(waiting)
    failed.add_done_callback(lambda _: setattr(gate, "then", None))
    gate.open(then=raised)
    error = failed.exception(WAIT_S)
    assert type(error) is kind
    assert (error.code, error.retryable, error.__cause__) == (code, True, raised)
    check_answers([waiting], [future])
    assert engine.is_healthy(WAIT_S)


class Wrong(FakeRunner):
    """Returns a result for an unknown request."""

    def run(self, plan: StepPlan) -> list[Sampled]:
        return [Sampled("somebody", 65) for _ in super().run(plan)]


def test_tokens_of_another_request_fail_the_step(start: Start) -> None:
    future = start(Wrong()).submit(ask())
    assert isinstance(future.exception(WAIT_S), StepFailed)


@pytest.mark.parametrize("raised", [RunnerBroken("device lost"), SystemExit(1)])
def test_when_the_thread_dies_everybody_is_told(start: Start, raised: BaseException) -> None:
    gate = Gate()
    engine = start(FakeRunner(fault=gate), max_slots=1)
    reason: Future[BaseException] = Future()
    engine.on_failed = reason.set_result
    futures = [engine.submit(ask(f"{n}")) for n in range(3)]
    assert gate.entered.wait(WAIT_S)
    gate.open(then=raised)
    for future in futures:
        assert type(future.exception(WAIT_S)) is EngineStopped
    assert reason.result(WAIT_S) is raised
    assert not engine.is_healthy(WAIT_S)
    assert not engine.can_admit(1, 1)
    with pytest.raises(EngineStopped):
        engine.submit(ask())


@pytest.mark.parametrize("error", [RuntimeError("full"), SystemExit(1)])
def test_callbacks_that_raise_change_nothing(start: Start, error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    gate = Gate()
    engine = start(FakeRunner(fault=gate), on_deltas=fail)
    engine.on_room = fail
    requests = [ask(f"{n}") for n in range(4)]
    futures = [engine.submit(request) for request in requests]
    for future in futures:
        future.add_done_callback(fail)  # before it is done, or it would be called here
    gate.open()
    check_answers(requests, futures)
    assert engine.is_healthy(WAIT_S)


def test_a_failure_of_the_books_still_tells_everybody(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    engine = start(FakeRunner(fault=gate))
    futures = [engine.submit(ask(f"{n}", max_tokens=1)) for n in range(3)]
    assert gate.entered.wait(WAIT_S)
    monkeypatch.setattr(Scheduler, "remove", lambda *_, **__: 1 / 0)
    gate.open()
    assert futures[0].exception(WAIT_S) is None  # it had ended when the books failed
    assert [type(future.exception(WAIT_S)) for future in futures[1:]] == [EngineStopped] * 2
    assert not engine.is_healthy(WAIT_S)


class Crowd:
    """Threads that submit 200 requests, and cancel every third as soon as it is in."""

    def __init__(self, engine: LLMEngine) -> None:
        self.engine = engine
        self.accepted: dict[str, tuple[EngineRequest, Future[CompletionOutput]]] = {}
        self.outcomes: Counter[str] = Counter()
        self.threads = [threading.Thread(target=self.submit, args=(range(n, 200, 4),)) for n in range(4)]
        for thread in self.threads:
            thread.start()

    def submit(self, numbers: range) -> None:
        for number in numbers:
            request = ask(f"question {number}", max_tokens=40)
            try:
                future = self.engine.submit(request)
            except EngineStopped:
                return
            self.accepted[request.id] = request, future
            future.add_done_callback(partial(self.count, request.id))
            if number % 3 == 0:
                self.engine.cancel(request.id)

    def count(self, request_id: str, _: object) -> None:
        self.outcomes[request_id] += 1

    def check(self) -> None:
        for thread in self.threads:
            thread.join(WAIT_S)
        for request, future in self.accepted.values():
            error = future.exception(WAIT_S)
            assert error is None or isinstance(error, EngineStopped | StepFailed)
            if error is None and future.result().finish_reason is not FinishReason.CANCELLED:
                check_answers([request], [future])
        self.engine.stop(WAIT_S)  # the thread has ended, and so has every callback
        assert self.outcomes == dict.fromkeys(self.accepted, 1)


@pytest.mark.parametrize("seed", range(6))
def test_threads_that_submit_cancel_and_stop_leave_nobody_without_an_outcome(start: Start, seed: int) -> None:
    dice = random.Random(seed)

    def fail_sometimes(plan: StepPlan) -> None:
        if dice.random() < 0.02:
            raise RuntimeError("injected")

    engine = start(FakeRunner(num_blocks=24, block_tokens=4, fault=fail_sometimes), max_slots=5, step_tokens=11)
    crowd = Crowd(engine)
    if seed % 2:
        engine.stop(WAIT_S)
    crowd.check()
    assert engine.stats().free_blocks == 24


def test_stop_waits_for_the_step_and_tells_the_rest(start: Start) -> None:
    entered = threading.Event()

    def wait_for_the_stop(plan: StepPlan) -> None:
        entered.set()
        wait_for(lambda: not engine.is_healthy(WAIT_S), "the engine takes no more requests")

    engine = start(FakeRunner(fault=wait_for_the_stop), max_slots=1)
    ends_now = engine.submit(ask("a", max_tokens=1))
    assert entered.wait(WAIT_S)
    waits = engine.submit(ask("b"))
    engine.stop(WAIT_S)
    assert ends_now.result(0).finish_reason is FinishReason.LENGTH
    assert type(waits.exception(0)) is EngineStopped
    assert engine.stats().free_blocks == engine.stats().total_blocks


def test_stop_does_not_wait_for_ever_for_a_step_that_hangs(start: Start) -> None:
    gate = Gate()
    runner = Watched()
    runner.fault = gate
    engine = start(runner)
    died: list[BaseException] = []
    engine.on_failed = died.append
    future = engine.submit(ask())
    assert gate.entered.wait(WAIT_S)
    engine.stop(0.01)
    assert type(future.exception(0)) is EngineStopped
    assert runner.forgotten == []  # its thread is still busy with it
    gate.open()
    wait_for(lambda: len(runner.forgotten) == 1, "its thread has ended")
    assert died == []


def test_an_engine_that_was_never_started_tells_everybody_too() -> None:
    engine = LLMEngine(Watched(), Bytes, EngineConfig(), on_deltas=lambda deltas: None)
    future = engine.submit(ask())
    assert not engine.is_healthy(WAIT_S)
    engine.stop(WAIT_S)
    assert type(future.exception(0)) is EngineStopped
    with pytest.raises(EngineStopped):
        engine.submit(ask())


def test_a_callback_may_submit_the_next_request(start: Start) -> None:
    engine = start(FakeRunner())
    chained: Future[CompletionOutput] = Future()
    request = ask("next", request_id="again")

    def submit_next(_: object) -> None:
        engine.submit(request).add_done_callback(lambda future: chained.set_result(future.result()))

    engine.submit(ask("first", request_id="again")).add_done_callback(submit_next)
    assert chained.result(WAIT_S).text == alone(request).text


def test_health_and_the_age_of_the_last_step() -> None:
    clock = Clock(50.0)
    runner = Watched()
    engine = LLMEngine(runner, Bytes, EngineConfig(), on_deltas=lambda deltas: None, clock=clock)
    gate = Gate()
    runner.fault = gate
    engine.start()
    clock.now = 99.0
    assert (engine.stats().last_step_age_s, engine.is_healthy(5.0)) == (0.0, True)
    future = engine.submit(ask(max_tokens=1))
    assert gate.entered.wait(WAIT_S)
    clock.now = 103.0
    assert (engine.stats().last_step_age_s, engine.is_healthy(5.0)) == (4.0, True)
    clock.now = 105.0
    assert (engine.stats().last_step_age_s, engine.is_healthy(5.0)) == (6.0, False)
    gate.open()
    future.result(WAIT_S)
    assert (engine.stats().last_step_age_s, engine.is_healthy(5.0)) == (0.0, True)
    engine.stop(WAIT_S)
    assert not engine.is_healthy(5.0)
