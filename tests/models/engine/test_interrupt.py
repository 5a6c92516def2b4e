"""An interruptible step ends early when a request arrives, without a change of any answer."""

import threading
import time
from collections.abc import Iterator
from math import inf

import pytest

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.runner import Interrupted, Sampled, StepPlan
from headrace.models.fakes.fake import FakeRunner
from tests.models.engine.rig import WAIT_S, Bytes, ask, check_answers


class Lasting(FakeRunner):
    """A fake with interruptible steps that last until they are interrupted, while enabled."""

    def __init__(self) -> None:
        super().__init__(num_blocks=64, block_tokens=4, context_window=256)
        self.lasts = threading.Event()
        self.began = threading.Event()
        self.num_interrupted = 0
        self.plans: list[StepPlan] = []

    def run(self, plan: StepPlan) -> list[Sampled]:
        self.plans.append(plan)
        if plan.interrupt is not None and self.lasts.is_set():
            self.began.set()
            deadline = time.monotonic() + WAIT_S
            while not plan.interrupt.is_set and self.lasts.is_set() and time.monotonic() < deadline:
                time.sleep(0.001)
            if plan.interrupt.is_set:
                self.num_interrupted += 1
                raise Interrupted
        return super().run(plan)


@pytest.fixture
def runner() -> Lasting:
    return Lasting()


@pytest.fixture
def engine(runner: Lasting) -> Iterator[LLMEngine]:
    engine = LLMEngine(runner, Bytes, EngineConfig(8, 32, stretch=inf), on_deltas=lambda _: None)
    engine.start()
    yield engine
    runner.lasts.clear()
    engine.stop(WAIT_S)


def test_whoever_is_waited_for_ends_the_backgrounds_step(engine: LLMEngine, runner: Lasting) -> None:
    runner.lasts.set()
    background = [ask("one by one", class_rank=2), ask("and another", class_rank=2)]
    futures = [engine.submit(request) for request in background]
    assert runner.began.wait(WAIT_S)
    waited_for = ask("now, please", class_rank=0)
    done = engine.submit(waited_for)
    check_answers([waited_for], [done])
    assert runner.num_interrupted == 1
    runner.lasts.clear()
    check_answers(background, futures)
    engine.audit()


def test_the_background_interrupts_nobody(engine: LLMEngine, runner: Lasting) -> None:
    runner.lasts.set()
    background = [ask("one by one", class_rank=2), ask("and another", class_rank=2)]
    futures = [engine.submit(background[0])]
    assert runner.began.wait(WAIT_S)
    futures.append(engine.submit(background[1]))
    time.sleep(0.05)
    runner.lasts.clear()
    check_answers(background, futures)
    assert runner.num_interrupted == 0


def test_a_step_that_somebody_waits_for_is_not_interrupted(engine: LLMEngine, runner: Lasting) -> None:
    requests = [ask("waited for", class_rank=rank) for rank in (0, 1, 2)]
    check_answers(requests, [engine.submit(request) for request in requests])
    mixed = [plan for plan in runner.plans if any(row.request.class_rank < 2 for row in plan.rows)]
    assert mixed
    assert all(plan.interrupt is None for plan in mixed)


class Cramped(FakeRunner):
    """A fake with memory for one row per pass; the second pass of a step is interrupted once."""

    def __init__(self) -> None:
        super().__init__(num_blocks=64, block_tokens=4, context_window=256)
        self.ran: list[tuple[str, int]] = []
        self.passes = 0

    def run(self, plan: StepPlan) -> list[Sampled]:
        if len(plan.rows) > 1:
            self.passes = 0
            raise MemoryError
        self.passes += 1
        if plan.interrupt is not None and self.passes == 2:
            raise Interrupted
        self.ran += [(row.request.id, row.start) for row in plan.rows]
        return super().run(plan)


def test_what_a_step_gave_before_it_was_interrupted_is_not_computed_again() -> None:
    runner = Cramped()
    engine = LLMEngine(runner, Bytes, EngineConfig(8, 32, stretch=inf), on_deltas=lambda _: None)
    requests = [ask("one by one", class_rank=2), ask("and another", class_rank=2)]
    futures = [engine.submit(request) for request in requests]
    engine.start()
    check_answers(requests, futures)
    engine.stop(WAIT_S)
    assert len(set(runner.ran)) == len(runner.ran)
