"""A step that fails: the row to blame is found, its neighbours notice nothing, and passes shrink for want of memory."""

import random
from concurrent.futures import Future

import pytest

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import (
    CompletionOutput,
    EngineError,
    EngineRequest,
    NumericalError,
    OutOfMemory,
    StepFailed,
)
from headrace.models.engine.runner import CALM_STEPS, MAX_PASSES, Row, Sampled, StepPlan, StepRunner
from tests.models.engine.rig import Bytes, Clock, Watched, ask, check_answers, step, step_until_idle


class Poisoned(Watched):
    """Fails each pass that a poisonous prompt takes part in, or that has more rows than there is memory for."""

    def __init__(self, error: type[Exception] = RuntimeError, *, max_rows: int = 99) -> None:
        super().__init__(num_blocks=1400, block_tokens=4, context_window=512)
        self.error = error
        self.max_rows = max_rows

    def fail(self, plan: StepPlan) -> None:
        if any(bytes(row.request.prompt).startswith(b"poison") for row in plan.rows):
            self.failures.append(self.error("poison"))
        elif len(plan.rows) > self.max_rows:
            self.failures.append(MemoryError("too many"))
        super().fail(plan)

    def sizes(self) -> list[int]:
        """The rows of each pass since the last call."""
        sizes = [len(plan.rows) for plan in self.plans]
        self.plans.clear()
        return sizes


def engine_of(runner: Watched, *, max_slots: int = 32, clock: Clock | None = None) -> LLMEngine:
    return LLMEngine(
        runner, Bytes, EngineConfig(max_slots, 512), on_deltas=lambda deltas: None, clock=clock or Clock(0.0)
    )


def submit(engine: LLMEngine, requests: list[EngineRequest]) -> list[Future[CompletionOutput]]:
    return [engine.submit(request) for request in requests]


@pytest.mark.parametrize(("error", "kind"), [(RuntimeError, StepFailed), (MemoryError, OutOfMemory)])
@pytest.mark.parametrize("culprit", [0, 13, 31])
def test_the_culprit_fails_alone_and_its_neighbours_answers_are_the_same(
    culprit: int, error: type[Exception], kind: type[EngineError]
) -> None:
    runner = Poisoned(error)
    engine = engine_of(runner)
    # Of different salts, or most would wait for the first to compute their common beginning.
    requests = [ask(f"{'poison' if n == culprit else 'good'} {n}", max_tokens=20, salt=str(n)) for n in range(32)]
    futures = submit(engine, requests)
    step(engine)
    assert len(runner.sizes()) == 11, "one pass, then two for each halving"
    failed = futures.pop(culprit).exception(0)
    del requests[culprit]
    assert type(failed) is kind
    step(engine)
    assert runner.sizes() == [31], "nothing is remembered of it"
    step_until_idle(engine)
    check_answers(requests, futures)
    assert runner.breaches == []


def test_what_was_computed_from_numbers_that_are_not_finite_is_found_by_nobody() -> None:
    runner = Watched()
    engine = engine_of(runner)
    requests = [ask("the same beginning", max_tokens=5, ignore_eos=True) for _ in range(3)]
    runner.not_finite.add(requests[0].id)
    futures = []
    for request in requests:
        futures += submit(engine, [request])
        step_until_idle(engine)
    assert isinstance(futures[0].exception(0), NumericalError)
    check_answers(requests[1:], futures[1:])
    assert [future.result(0).num_cached_tokens for future in futures[1:]] == [0, 16]
    assert runner.breaches == []


def test_a_culprit_that_strikes_late_keeps_what_it_had_said() -> None:
    runner = Watched(num_blocks=400)
    engine = engine_of(runner)
    requests = [ask(f"{n}", max_tokens=20, ignore_eos=True) for n in range(4)]
    futures = submit(engine, requests)
    for _ in range(6):
        step(engine)
    runner.fault = lambda plan: 1 / 0 if any(row.request.id == requests[2].id for row in plan.rows) else None
    step_until_idle(engine)
    error = futures.pop(2).exception(0)
    assert isinstance(error, StepFailed)
    assert error.progress is not None
    assert len(error.progress.deltas) == 6
    del requests[2]
    check_answers(requests, futures)


@pytest.mark.parametrize("seed", range(5))
def test_several_culprits_are_all_found(seed: int) -> None:
    dice = random.Random(seed)
    names = ["poison" if dice.random() < 0.15 else "good" for _ in range(32)]
    engine = engine_of(Poisoned())
    requests = [ask(f"{name} {n}", max_tokens=12) for n, name in enumerate(names)]
    futures = submit(engine, requests)
    step_until_idle(engine)
    assert [future.exception(0) is None for future in futures] == [name == "good" for name in names]


def test_a_device_that_always_fails_is_not_asked_for_ever() -> None:
    runner = Watched(num_blocks=400)
    runner.fault = lambda plan: 1 / 0
    engine = engine_of(runner, max_slots=200)
    futures = submit(engine, [ask(f"{n}", max_tokens=2) for n in range(150)])
    step(engine)
    assert MAX_PASSES == 64 <= len(runner.plans) < 128
    assert all(isinstance(future.exception(0), StepFailed) for future in futures)


@pytest.mark.parametrize(
    ("sampled", "is_right"),
    [
        ([Sampled("b", 65)], True),
        ([Sampled("a", None, finite=False), Sampled("b", 65)], True),
        ([Sampled("a", 65), Sampled("b", 65)], False),
        ([Sampled("b", 65), Sampled("a", None, finite=False)], False),
        ([Sampled("b", 65), Sampled("b", 65)], False),
        ([], False),
    ],
)
def test_a_token_for_a_row_that_asked_for_none_fails_the_pass(
    monkeypatch: pytest.MonkeyPatch, sampled: list[Sampled], is_right: bool
) -> None:
    """A row within a prompt has an entry only if its numbers are not finite."""
    runner = Watched()
    alone = runner.run
    monkeypatch.setattr(runner, "run", lambda plan: sampled if len(plan.rows) == 2 else alone(plan))
    requests = [ask(name, request_id=name) for name in ("a", "b")]
    rows = [Row(one, (1,), 0, (0,), (), sample=number > 0) for number, one in enumerate(requests)]
    found = StepRunner(runner, lambda: None).run(StepPlan(tuple(rows)))
    assert [len(one.plan.rows) for one in found] == ([2] if is_right else [1, 1]), "a pass that failed is divided"
    assert not is_right or found[0].sampled == tuple(sampled)


def test_want_of_memory_makes_passes_small_for_a_while() -> None:
    runner = Poisoned(max_rows=5)
    engine = engine_of(runner)
    requests = [ask(f"{n}", max_tokens=300, ignore_eos=True) for n in range(16)]
    futures = submit(engine, requests)
    step(engine)
    assert runner.sizes() == [16, 8, 4, 4, 8, 4, 4]
    for _ in range(64):
        step(engine)
        assert runner.sizes() == [4] * 4
    step(engine)
    assert runner.sizes() == [8, 4, 4, 8, 4, 4], "tried with more, in vain"
    runner.max_rows = 99
    for _ in range(3 * CALM_STEPS):
        step(engine)
    assert runner.sizes()[-1] == 16
    step_until_idle(engine)
    check_answers(requests, futures)


def test_every_pass_is_progress_that_renews_leases_and_calms_the_watchdog() -> None:
    clock = Clock(0.0)
    runner = Poisoned()
    engine = engine_of(runner, clock=clock)
    seen: list[tuple[int, float]] = []

    def look(plan: StepPlan) -> None:
        clock.now += 10
        seen.append((engine.stats().steps, engine.stats().last_step_age_s))
        runner.fail(plan)

    runner.fault = look
    submit(engine, [ask("poison"), ask("good")])
    step(engine)
    assert seen == [(0, 10.0), (1, 10.0), (2, 10.0)]
    assert (engine.stats().steps, engine.stats().failed) == (3, 1)
