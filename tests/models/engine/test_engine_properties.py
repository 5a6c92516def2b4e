"""The whole engine, stepped by hand through anything that may happen to it, held against the reference alone.

Whatever the order of submissions, cancels, deadlines, failures and steps: the budget holds, blocks are conserved, the
oldest request always runs, and each request gets one outcome, which does not depend on the others.
"""

from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import (
    CompletionOutput,
    Delta,
    EmittedOutput,
    EngineError,
    EngineRequest,
    EngineStopped,
    FinishReason,
    NumericalError,
    OutOfMemory,
    RequestTooLong,
    StepFailed,
)
from headrace.models.engine.runner import StepPlan
from tests.models.engine.rig import Bytes, Watched, alone, ask, step, step_until_idle

PROMPTS = st.text("ab ", min_size=1, max_size=40) | st.integers(1, 40).map(
    lambda end: ("all begin the same " * 3)[:end]
)
SALTS = st.sampled_from(["one tenant", "another"])


class EngineMachine(RuleBasedStateMachine):
    """Requests by id, with their results and expected properties."""

    @initialize(
        num_blocks=st.integers(8, 24),
        block_tokens=st.integers(1, 5),
        max_slots=st.integers(1, 6),
        step_tokens=st.integers(1, 24),
        spare_tokens=st.sampled_from([0, 5, 20]),
        lookahead_tokens=st.integers(0, 1),
        stretch=st.sampled_from([1.1, inf]),
    )
    def begin(
        self,
        num_blocks: int,
        block_tokens: int,
        max_slots: int,
        step_tokens: int,
        spare_tokens: int,
        lookahead_tokens: int,
        stretch: float,
    ) -> None:
        self.now = 0.0
        self.runner = Watched(
            num_blocks=num_blocks,
            block_tokens=block_tokens,
            context_window=80,
            spare_tokens=spare_tokens,
            lookahead_tokens=lookahead_tokens,
        )
        self.config = EngineConfig(max_slots, step_tokens, stretch=stretch)
        self.deltas: dict[str, list[Delta]] = {}
        self.engine = LLMEngine(
            self.runner,
            Bytes,
            self.config,
            on_deltas=self.take_deltas,
            clock=lambda: self.now + self.runner.elapsed,
        )
        self.requests: dict[str, EngineRequest] = {}
        self.futures: dict[str, Future[CompletionOutput]] = {}
        self.outcomes: Counter[str] = Counter()
        self.cancelled: set[str] = set()
        self.handed_back: set[str] = set()
        self.poisoned: set[str] = set()

    def take_deltas(self, deltas: list[Delta]) -> None:
        assert deltas
        for delta in deltas:
            assert not self.futures[delta.request_id].done(), "a delta after its request's outcome"
            self.deltas.setdefault(delta.request_id, []).append(delta)

    @rule(
        prompt=PROMPTS,
        salt=SALTS,
        class_rank=st.integers(0, 2),
        max_tokens=st.integers(1, 40),
        stop=st.lists(st.sampled_from(["e ", "the", "r", " w", "zz", "in"]), max_size=2),
        ignore_eos=st.booleans(),
        patience=st.none() | st.integers(1, 60),
    )
    def submit(
        self,
        prompt: str,
        salt: str,
        class_rank: int,
        max_tokens: int,
        stop: list[str],
        ignore_eos: bool,
        patience: int | None,
    ) -> None:
        request = ask(
            prompt,
            max_tokens=max_tokens,
            stop=stop,
            ignore_eos=ignore_eos,
            deadline=None if patience is None else self.now + patience,
            salt=salt,
            class_rank=class_rank,
        )
        fits = len(prompt) + max_tokens <= min(80, self.runner.num_blocks * self.runner.block_tokens)
        self.requests[request.id] = request
        try:
            future = self.engine.submit(request)
        except RequestTooLong:
            assert not fits
            del self.requests[request.id]
            return
        assert fits
        self.futures[request.id] = future
        future.add_done_callback(lambda _: self.outcomes.update([request.id]))

    @rule(times=st.integers(1, 12))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.step_once()

    def step_once(self) -> None:
        self.now += 1
        inside = list(self.engine._active)
        num_plans = len(self.runner.plans)
        step(self.engine)
        assert not (self.cancelled | self.handed_back) & self.engine._active.keys(), "told to end, and still inside"
        if plans := self.runner.plans[num_plans:]:
            self.check_step(plans, inside)

    def check_step(self, plans: list[StepPlan], inside: list[str]) -> None:
        """A step is one pass, or several after a failure or low memory; failed parts run again."""
        step_tokens = {row.request.id: len(row.tokens) for plan in plans for row in plan.rows}
        rows = list(step_tokens)
        assert sum(step_tokens.values()) <= self.config.step_tokens
        assert len(rows) <= self.config.max_slots
        stayed = [name for name in inside if name not in self.cancelled | self.handed_back and not self.is_late(name)]
        assert stayed[0] in rows, "the oldest request did not run"
        assert set(rows) <= set(stayed), "a request ran that had to end"

    def is_late(self, name: str) -> bool:
        deadline = self.requests[name].deadline
        return deadline is not None and self.now >= deadline

    @precondition(lambda self: self.engine._active)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(map(str, self.engine._active))))
        assert self.engine.cancel(name)
        self.cancelled.add(name)

    @precondition(lambda self: self.engine._active)
    @rule(data=st.data())
    def poison(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(map(str, self.engine._active))))
        self.runner.not_finite.add(name)
        self.poisoned.add(name)

    @rule(error=st.sampled_from([RuntimeError, MemoryError]), times=st.integers(1, 4))
    def fail_the_next_passes(self, error: type[Exception], times: int) -> None:
        self.runner.failures += [error("injected") for _ in range(times)]

    @precondition(lambda self: self.engine._active)
    @rule(data=st.data())
    def hand_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(map(str, self.engine._active))))
        assert self.engine.cancel(name, FinishReason.HANDED_BACK)
        self.handed_back.add(name)

    @rule()
    def ask_for_credit(self) -> None:
        capacity = self.runner.num_blocks * self.runner.block_tokens
        is_empty = not self.engine._active
        assert self.engine.can_admit(capacity, 10) == is_empty, "more than everything finds room when all are gone"
        assert not self.engine.can_admit(1, 1, count=self.config.max_slots - len(self.engine._active) + 1)

    @invariant()
    def blocks_are_conserved(self) -> None:
        pool, scheduler = self.engine._pool, self.engine._scheduler
        self.engine.audit()
        held = {block for seq in scheduler.running for block in seq.blocks}
        assert pool.num_free + len(held) == pool.num_blocks
        assert not any(seq.blocks for seq in scheduler.waiting)

    @invariant()
    def what_is_shared_is_the_same_and_of_one_salt(self) -> None:
        seen: dict[int, tuple[str, list[int]]] = {}
        for seq in self.engine._scheduler.running:
            known = [*seq.request.prompt, *seq.output]
            for number, block in enumerate(seq.blocks, 1):
                end = number * self.runner.block_tokens
                content = seq.request.cache_salt, known[:end]
                assert seen.setdefault(block, content) == content
                seen[block] = content if end <= seq.num_cached else ("", [-1])  # the rest is one's own

    @invariant()
    def nobody_overtakes(self) -> None:
        """The oldest request is first of all; within each class older requests are served first."""
        arrivals = {name: number for number, name in enumerate(self.engine._active)}
        running, waiting = (
            [(seq.request.class_rank, arrivals[seq.id]) for seq in lives if arrivals[seq.id]]
            for lives in (self.engine._scheduler.running, self.engine._scheduler.waiting)
        )
        assert sorted(running) == running
        assert sorted(waiting) == waiting
        for class_rank in range(3):
            ours = [arrival for rank, arrival in (*running, *waiting) if rank == class_rank]
            assert sorted(ours) == ours

    @invariant()
    def everybody_is_inside_or_has_one_outcome(self) -> None:
        assert not self.runner.breaches
        for name, future in self.futures.items():
            assert future.done() != (name in self.engine._active)
            assert self.outcomes[name] == future.done()

    def check_outcome(self, name: str, future: Future[CompletionOutput]) -> None:
        error = future.exception(0)
        if error is None:
            self.check_completion(name, future.result(0))
        elif isinstance(error, NumericalError):
            assert name in self.poisoned
        elif isinstance(error, OutOfMemory):
            assert isinstance(error.__cause__, MemoryError)
        else:
            assert isinstance(error, EngineStopped | StepFailed)
            assert not isinstance(error, StepFailed) or isinstance(error.__cause__, RuntimeError)
        if error is not None:
            assert isinstance(error, EngineError)
            assert error.progress is not None
            assert replace(error.progress, first_token_s=None) == EmittedOutput(
                tuple(delta.text for delta in self.deltas.get(name, [])),
                tuple(delta.token_ids for delta in self.deltas.get(name, [])),
            )

    def check_completion(self, name: str, completion: CompletionOutput) -> None:
        expected = alone(self.requests[name])
        deltas = self.deltas.get(name, [])
        assert [delta.seq for delta in deltas] == list(range(1, len(deltas) + 1))
        assert completion.deltas == tuple(delta.text for delta in deltas)
        assert completion.delta_token_ids == tuple(delta.token_ids for delta in deltas)
        assert completion.text == "".join(completion.deltas)
        shown = [token for delta in deltas for token in delta.token_ids]
        assert shown == list(completion.token_ids[: len(shown)])
        match completion.finish_reason:
            case FinishReason.CANCELLED | FinishReason.DEADLINE as reason:
                assert name in self.cancelled if reason is FinishReason.CANCELLED else self.is_late(name)
                assert completion.token_ids == expected.token_ids[: len(completion.token_ids)]
                assert completion.text == bytes(completion.token_ids).decode()
            case FinishReason.HANDED_BACK:
                assert name in self.handed_back
                assert completion.token_ids == expected.token_ids[: len(completion.token_ids)]
                assert expected.text.startswith(completion.text)
            case FinishReason.STOP | FinishReason.LENGTH as reason:
                assert (completion.text, completion.token_ids, reason) == (
                    expected.text,
                    expected.token_ids,
                    expected.finish_reason,
                )

    def finish(self) -> None:
        for _ in range(5000):
            if not self.engine._active:
                return
            self.step_once()
        raise AssertionError("somebody never ends")

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.finish()
        for name, future in self.futures.items():
            self.check_outcome(name, future)
        assert not self.runner.breaches
        assert self.engine._pool.num_free == self.runner.num_blocks
        assert sorted(map(str, self.runner.forgotten)) == sorted(self.futures)


class StoppingMachine(EngineMachine):
    """The same, ended by a stop at any moment."""

    def finish(self) -> None:
        self.engine.stop(timeout_s=0)
        assert not self.engine._active
        self.everybody_is_inside_or_has_one_outcome()


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestStoppingMachine = StoppingMachine.TestCase
TestStoppingMachine.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


def test_output_is_the_same_alone_and_in_any_batch() -> None:
    """A pool far too small for the load: all requests are preempted, some many times."""
    runner = Watched(num_blocks=24, block_tokens=4)
    engine = LLMEngine(runner, Bytes, EngineConfig(max_slots=12, step_tokens=9), on_deltas=lambda deltas: None)
    requests = [ask(f"prompt {n}" * (1 + n % 4), max_tokens=40, ignore_eos=n % 3 == 0) for n in range(40)]
    futures = [engine.submit(request) for request in requests]
    step_until_idle(engine)
    assert engine.stats().preempted > 20
    for request, future in zip(requests, futures, strict=True):
        completion = future.result(0)
        expected = alone(request)
        assert (completion.text, completion.token_ids) == (expected.text, expected.token_ids)
