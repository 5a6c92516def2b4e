"""Drafts are made while they pay, and change nothing but the number of steps.

Prompt lookup is compared with a slow search through the whole text, the learned costs with passes of a known cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.models.engine.block_manager import BlockPool
from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.reasoning import ReasoningTokens
from headrace.models.engine.requests import EngineRequest, EngineStats, FinishReason
from headrace.models.engine.runner import Sampled, StepPlan
from headrace.models.engine.scheduling.scheduler import Scheduler
from headrace.models.engine.speculation import AcceptanceStatistics, PassEstimate, PromptLookup, Speculation, StepCosts
from tests.models.engine.rig import (
    Bytes,
    Clock,
    Ticking,
    Watched,
    alone,
    ask,
    check_answers,
    seq,
    step,
    step_until_idle,
)


def engine_of(runner: Watched, *, max_slots: int = 4, step_tokens: int = 64, speculation: bool = True) -> LLMEngine:
    config = EngineConfig(max_slots, step_tokens, speculation)
    return LLMEngine(runner, Bytes, config, on_deltas=lambda deltas: None, clock=Ticking())


def requests_of(count: int) -> list[EngineRequest]:
    """The fake's words are few, so that most letters of a word are to be had from an earlier one."""
    return [ask(f"prompt {n} the water wheel", max_tokens=90, ignore_eos=n % 2 == 0) for n in range(count)]


@dataclass(frozen=True)
class Pass:
    num_rows: int
    num_tokens: int
    num_drafts: int
    is_decode: bool


@dataclass
class Noted(Watched):
    """Records each plan when it runs, because a row's output grows afterwards."""

    passes: list[Pass] = field(default_factory=list)

    def run(self, plan: StepPlan) -> list[Sampled]:
        num_drafts = sum(len(row.drafts) for row in plan.rows)
        is_decode = all(row.is_decode for row in plan.rows)
        self.passes.append(Pass(len(plan.rows), plan.num_tokens, num_drafts, is_decode))
        return super().run(plan)


def run(runner: Watched, requests: list[EngineRequest], **config: Any) -> tuple[int, EngineStats]:
    """Check the answers, and return the number of steps and the counters."""
    engine = engine_of(runner, **config)
    futures = [engine.submit(each) for each in requests]
    num_steps = step_until_idle(engine)
    check_answers(requests, futures)
    assert not runner.breaches
    return num_steps, engine.stats()


@pytest.mark.parametrize("name", [f"prompt {n} the water wheel" for n in range(5)])
def test_each_accepted_token_saves_a_step(name: str) -> None:
    request = ask(name, max_tokens=200, ignore_eos=True)
    slow, without = run(Noted(spare_tokens=16), [request], speculation=False)
    runner = Noted(spare_tokens=16)
    fast, stats = run(runner, [request])
    assert (without.drafted_tokens, without.output_tokens, stats.output_tokens) == (0, 200, 200)
    assert stats.drafted_tokens == sum(each.num_drafts for each in runner.passes)
    assert 10 < stats.accepted_tokens < stats.drafted_tokens
    assert slow - fast == stats.accepted_tokens


def test_there_are_as_many_drafts_as_there_is_room() -> None:
    runner = Noted(spare_tokens=9)
    run(runner, requests_of(4))
    assert max(each.num_tokens for each in runner.passes if each.num_drafts) == 9


def test_there_are_none_beside_a_prompt_and_none_in_a_large_batch() -> None:
    runner = Noted(spare_tokens=5, num_blocks=256)
    run(runner, requests_of(9), max_slots=8)
    assert any(each.num_drafts for each in runner.passes)
    for each in runner.passes:
        assert each.num_drafts <= max(0, 5 - each.num_rows)
        assert each.num_drafts == 0 or each.is_decode


@pytest.mark.parametrize("pause_after", [1, 7, 30])
def test_a_request_is_handed_back_where_it_asked_for(pause_after: int) -> None:
    engine = engine_of(Watched(spare_tokens=16))
    request = ask("prompt 0 the water wheel", max_tokens=90, ignore_eos=True)
    future = engine.submit(EngineRequest(request.id, request.prompt, request.sampling, pause_after=pause_after))
    step_until_idle(engine)
    done = future.result(0)
    assert (done.finish_reason, len(done.token_ids)) == (FinishReason.HANDED_BACK, pause_after)
    assert done.token_ids == alone(request).token_ids[:pause_after]


def test_logprobs_come_for_each_token() -> None:
    engine = engine_of(Watched(spare_tokens=16))
    request = ask("prompt 0 the water wheel", max_tokens=60, ignore_eos=True)
    sampling = type(request.sampling)(max_tokens=60, ignore_eos=True, logprobs=1)
    future = engine.submit(EngineRequest(request.id, request.prompt, sampling))
    assert step_until_idle(engine) <= 60
    assert [each.top_ids for each in future.result(0).logprobs] == [(t,) for t in future.result(0).token_ids]


def test_nobody_is_preempted_for_a_guess() -> None:
    """The pool has exactly the blocks that the requests need."""
    requests = requests_of(4)
    needed = sum(-(-(len(each.prompt) + len(alone(each).token_ids)) // 4) for each in requests)
    runner = Watched(spare_tokens=16, num_blocks=needed + 4)
    _, stats = run(runner, requests)
    assert stats.preempted == 0
    assert stats.accepted_tokens > 0


@pytest.mark.parametrize("num_spare_blocks", [0, 100])
def test_rows_have_a_place_for_the_token_after_the_next_if_blocks_are_free(num_spare_blocks: int) -> None:
    requests = requests_of(4)
    needed = sum(-(-(len(each.prompt) + len(alone(each).token_ids)) // 4) for each in requests)
    runner = Watched(lookahead_tokens=1, num_blocks=needed + num_spare_blocks)
    _, stats = run(runner, requests)
    rows = [row for plan in runner.plans for row in plan.rows if row.is_decode]
    going = [row for row in rows if len(row.output) + 1 < row.request.sampling.max_tokens]
    assert stats.preempted == 0
    if num_spare_blocks:
        assert all(len(row.blocks) * 4 > row.start + 1 for row in going)


def test_a_step_that_fails_is_run_again_with_its_drafts() -> None:
    runner = Watched(spare_tokens=16)
    engine = engine_of(runner)
    requests = requests_of(2)
    futures = [engine.submit(each) for each in requests]
    for _ in range(3):
        step(engine)
    for _ in range(3):
        runner.failures += [RuntimeError("injected")]
        for _ in range(3):
            step(engine)
    step_until_idle(engine)
    check_answers(requests, futures)


def test_a_chance_is_what_became_of_the_drafts_before_and_of_the_last_above_all() -> None:
    luck = AcceptanceStatistics()
    assert luck.chance == 0.5
    for _ in range(20):
        luck.record(4, 4, 0)
    assert luck.chance > 0.95
    luck.record(4, 0, 0)
    after_one = luck.chance
    for _ in range(20):
        luck.record(4, 0, 0)
    assert after_one > 0.8
    assert luck.chance < 0.2


@pytest.mark.parametrize(("budget", "output", "has_drafts"), [(9, "", False), (9, "!", True), (None, "", True)])
def test_none_is_guessed_where_the_end_of_the_reasoning_may_be_forced(
    budget: int | None, output: str, has_drafts: bool
) -> None:
    marks = ReasoningTokens((ord("?"),), (ord("!"),), is_open=True, budget=budget)
    request = seq(replace(ask("abcdabcdabcd"), reasoning=marks))
    for token in f"{output}abcd".encode():
        request.add(token, now=1.0)
    speculation = Speculation(16)
    speculation.begin(1)
    assert bool(speculation.draft(request, 4)) is has_drafts


def test_a_draft_is_worth_a_token_at_the_pace_of_the_pass() -> None:
    """4 tokens in 8 + 4 · 1 s: a draft for 1 s more must be accepted in more than a third of all cases."""
    estimate = PassEstimate(base=8.0, each=1.0, tokens=4.0, expected=4.0)
    assert not estimate.add(1 / 3 - 1e-9)
    assert estimate.best_gain(2) == pytest.approx((6 / 4) / (14 / 12))
    assert estimate.add(0.34)
    assert (estimate.tokens, estimate.expected) == (5.0, 4.34)
    assert not estimate.add(4.34 / 13 - 1e-9)


def test_after_failures_a_single_draft_is_tried_less_and_less_often() -> None:
    luck = AcceptanceStatistics()
    pauses = []
    for _ in range(8):
        luck.record(1, 0, 100)
        pauses.append(luck.resumes_at - 100)
    assert pauses == [4, 8, 16, 32, 64, 64, 64, 64]
    for _ in range(9):
        luck.record(1, 1, 100)
    assert luck.resumes_at == 104


@dataclass
class Timed(Noted):
    """Takes ``base_s`` for a pass and ``each_s`` for each token in it, by a clock of its own."""

    clock: Clock = field(default_factory=lambda: Clock(0.0))
    base_s: float = 0.01
    each_s: float = 0.0

    def run(self, plan: StepPlan) -> list[Sampled]:
        self.clock.now += self.base_s + self.each_s * plan.num_tokens
        return super().run(plan)


def timed(each_s: float, prompts: Sequence[str], *, speculation: bool) -> tuple[float, EngineStats, Timed]:
    """Return the seconds for 120 tokens of each, the counters and the runner."""
    runner = Timed(spare_tokens=16, num_blocks=1024, each_s=each_s)
    config = EngineConfig(8, 64, speculation)
    engine = LLMEngine(runner, Bytes, config, on_deltas=lambda deltas: None, clock=runner.clock)
    requests = [ask(prompt, max_tokens=120, ignore_eos=True) for prompt in prompts]
    futures = [engine.submit(each) for each in requests]
    step_until_idle(engine)
    check_answers(requests, futures)
    return runner.clock.now, engine.stats(), runner


QUESTIONS = [f"prompt {n} the water wheel" for n in range(8)]


@pytest.mark.parametrize("each_s", [0.0, 0.0001, 0.003, 0.01, 0.1])
@pytest.mark.parametrize("num_requests", [1, 4, 8])
def test_guessing_never_costs_much_time_whatever_a_token_more_costs(each_s: float, num_requests: int) -> None:
    slow_s, _, _ = timed(each_s, QUESTIONS[:num_requests], speculation=False)
    fast_s, _, _ = timed(each_s, QUESTIONS[:num_requests], speculation=True)
    assert fast_s <= 1.03 * slow_s


def test_the_dearer_a_token_the_fewer_are_guessed_and_the_more_of_them_hold() -> None:
    drafted, right = [], []
    for each_s in (0.0001, 0.002, 0.02):
        _, stats, _ = timed(each_s, QUESTIONS[:2], speculation=True)
        drafted.append(stats.drafted_tokens)
        right.append(stats.accepted_tokens / stats.drafted_tokens)
    assert drafted == sorted(drafted, reverse=True)
    assert drafted[0] > 2 * drafted[2]
    assert right == sorted(right)


def test_what_is_kept_ends_with_the_request() -> None:
    speculation = Speculation(8)
    scheduler = Scheduler(BlockPool(64, 4), max_slots=2, step_tokens=32, speculation=speculation)
    request = seq(ask("abcabcabc"))
    scheduler.add(request)
    plan = scheduler.schedule() or StepPlan(())
    scheduler.postprocess(plan)
    request.take(Sampled(request.id, ord("a")), 0.0)
    [row] = (scheduler.schedule() or StepPlan(())).rows
    assert bytes(row.drafts) == b"bca"
    scheduler.remove(request)
    assert not speculation.requests


TEXTS = st.lists(st.integers(0, 3), max_size=60)


def num_matching(tokens: list[int], place: int) -> int:
    """How many tokens before ``place`` are those at the end, eight at most."""
    return next((n for n in range(8) if n >= place or tokens[place - n - 1] != tokens[-n - 1]), 8)


def slow_draft(tokens: list[int], most: int) -> list[int]:
    places = [place for place in range(2, len(tokens)) if tokens[place - 2 : place] == tokens[-2:]][-4:]
    if not places:
        return []
    place = max(places, key=lambda each: (num_matching(tokens, each), each))
    text = list(tokens)
    for at in range(place, place + most):
        text.append(text[at])
    return text[len(tokens) :]


@given(tokens=TEXTS, most=st.integers(0, 12), cuts=st.lists(st.integers(0, 60), max_size=4))
def test_it_finds_what_a_search_finds_however_the_text_came(tokens: list[int], most: int, cuts: list[int]) -> None:
    lookup = PromptLookup()
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), 60], strict=True):
        lookup.extend(tokens[begin:end])
    assert len(lookup) == len(tokens)
    assert lookup.draft(most) == slow_draft(tokens, most)


def test_a_copy_is_continued_and_a_new_word_is_not() -> None:
    lookup = PromptLookup()
    lookup.extend([1, 2, 3, 4, 5, 6, 9, 2, 3])
    assert lookup.draft(3) == [4, 5, 6]
    lookup.extend([7])
    assert lookup.draft(3) == []


def test_the_longer_match_goes_before_the_later_one() -> None:
    lookup = PromptLookup()
    lookup.extend([1, 2, 3, 50, 8, 2, 3, 60, 1, 2, 3])
    assert lookup.draft(1) == [50]


def test_of_matches_longer_than_eight_the_latest_counts_and_of_many_positions_the_last_four() -> None:
    lookup = PromptLookup()
    lookup.extend([50, *range(9), 60, 99, *range(1, 9), 61, *range(9)])
    assert lookup.draft(1) == [61]
    lookup = PromptLookup()
    lookup.extend([7, 1, 2, 60, 8, 1, 2, 61, 8, 1, 2, 62, 8, 1, 2, 63, 8, 1, 2, 64, 7, 1, 2])
    assert lookup.draft(1) == [64]


def test_a_loop_goes_round() -> None:
    lookup = PromptLookup()
    lookup.extend([5, 1, 2, 1, 2])
    assert lookup.draft(5) == [1, 2, 1, 2, 1]


@given(st.floats(0.001, 1.0), st.floats(0.0, 0.1), st.sets(st.integers(1, 16), min_size=2), st.floats(1.0, 50.0))
def test_it_finds_what_a_pass_and_a_token_take_though_some_are_held_up(
    base: float, each: float, sizes: set[int], slower: float
) -> None:
    costs = StepCosts(16)
    for size in sizes:
        for factor in (slower, 1.0, slower):
            costs.record(size, factor * (base + each * size))
    assert costs.line() == pytest.approx((base, each), rel=1e-6, abs=1e-9)


def test_passes_of_one_size_say_nothing_and_large_ones_do_not_count() -> None:
    costs = StepCosts(16)
    assert costs.line() is None
    costs.record(4, 0.1)
    costs.record(17, 9.0)
    assert costs.line() is None


def test_it_follows_a_machine_that_changes() -> None:
    costs = StepCosts(16)
    for seconds in (0.001, 0.01):
        for _ in range(8):
            costs.record(1, 2 * seconds)
            costs.record(4, 5 * seconds)
    assert costs.line() == pytest.approx((0.01, 0.01))


def test_what_is_long_ago_is_forgotten() -> None:
    costs = StepCosts(16)
    costs.record(4, 0.1)
    for _ in range(600):
        costs.record(1, 0.1)
    assert costs.line() is None


@given(st.lists(st.tuples(st.integers(1, 16), st.floats(0.0, 10.0)), min_size=1, max_size=60))
def test_nothing_is_negative(passes: list[tuple[int, float]]) -> None:
    costs = StepCosts(16)
    for size, seconds in passes:
        costs.record(size, seconds)
    base, each = costs.line() or (0.0, 0.0)
    assert base >= 0 or base == pytest.approx(0, abs=1e-9)
    assert each >= 0
