"""How many prompt tokens enter beside streams, on a machine of known speed and on one that changes."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.runner import Sampled, StepPlan
from headrace.models.engine.scheduling.scheduler import FEWEST_TOKENS, LAST_STEPS, PrefillBudget
from tests.models.engine.rig import Bytes, Watched, ask, step

MOST = 512


def machine(learned: PrefillBudget, *, decode_s: float, token_s: float, steps: int = LAST_STEPS) -> None:
    """Let the budget see steps without prompts and steps with them."""
    for _ in range(steps):
        learned.record(8, 0, decode_s)
        learned.record(8, 40, decode_s + 40 * token_s)


@given(st.floats(0.001, 1.0), st.floats(0.00001, 0.1), st.floats(1.01, 4.0), st.integers(1, 64))
def test_a_step_with_prompts_is_at_most_stretched_so_far(
    decode_s: float, token_s: float, stretch: float, num_decoding: int
) -> None:
    learned = PrefillBudget(stretch)
    machine(learned, decode_s=decode_s, token_s=token_s)
    budget = learned.budget(num_decoding, 1, MOST)
    assert FEWEST_TOKENS <= budget <= MOST
    # Prompt tokens that take next to nothing are taken to be a little slower than they are.
    if FEWEST_TOKENS < budget < MOST:
        assert (stretch - 1) * decode_s - token_s <= max(budget * token_s, budget / 40 * decode_s / 9)
        assert budget * token_s <= (stretch - 1) * decode_s * (1 + 1e-6)


def test_without_streams_or_knowledge_or_a_bound_everything_enters() -> None:
    learned = PrefillBudget(1.8)
    assert learned.budget(8, 1, MOST) == MOST
    learned.record(8, 0, 0.01)
    assert learned.budget(8, 1, MOST) == MOST, "what a prompt token takes is not known"
    machine(learned, decode_s=0.01, token_s=0.001)
    assert learned.budget(0, 9, MOST) == MOST
    assert learned.budget(8, 1, MOST) < MOST
    unbounded = PrefillBudget(inf)
    machine(unbounded, decode_s=0.01, token_s=0.001)
    assert unbounded.budget(8, 1, MOST) == MOST


def test_it_follows_a_machine_that_changes_and_forgets_a_hiccup() -> None:
    learned = PrefillBudget(1.8)
    machine(learned, decode_s=0.05, token_s=0.001)
    assert learned.budget(8, 1, MOST) == pytest.approx(40, abs=1)
    learned.record(8, 0, 3.0)
    assert learned.budget(8, 1, MOST) == pytest.approx(40, abs=1)
    machine(learned, decode_s=0.05, token_s=0.0005)
    assert learned.budget(8, 1, MOST) == pytest.approx(80, abs=1)


def test_prompts_beside_streams_are_known_by_such_and_only_until_then_by_those_without() -> None:
    learned = PrefillBudget(1.8)
    for _ in range(LAST_STEPS):
        learned.record(8, 0, 0.05)
        learned.record(0, 256, 256 * 0.0005)
    assert learned.budget(8, 1, MOST) == pytest.approx(80, abs=1)
    learned.record(8, FEWEST_TOKENS - 1, 3.0)
    assert learned.budget(8, 1, MOST) == pytest.approx(80, abs=1), "too few to learn from"
    learned.record(8, 80, 0.05 + 80 * 0.001)
    assert learned.budget(8, 1, MOST) == pytest.approx(40, abs=1)


def test_where_some_steps_are_slower_than_others_it_goes_by_the_slower() -> None:
    learned = PrefillBudget(1.8)
    for _ in range(LAST_STEPS):
        learned.record(8, 0, 0.05)
    for token_s in (0.0005, 0.0005, 0.001, 0.001):
        learned.record(8, 40, 0.05 + 40 * token_s)
    assert learned.budget(8, 1, MOST) == pytest.approx(40, abs=1)


def test_a_clock_that_stands_still_teaches_nothing() -> None:
    learned = PrefillBudget(1.8)
    machine(learned, decode_s=0.0, token_s=0.0)
    assert learned.budget(8, 1, MOST) == MOST


@pytest.mark.parametrize(("num_streams", "most_waiting"), [(1, 1), (3, 1), (8, 2), (30, 10)])
def test_streams_give_way_where_more_than_a_third_as_many_prompts_wait(num_streams: int, most_waiting: int) -> None:
    learned = PrefillBudget(1.5)
    machine(learned, decode_s=0.05, token_s=0.001)
    assert learned.budget(num_streams, most_waiting, MOST) == pytest.approx(25, abs=1)
    assert learned.budget(num_streams, most_waiting + 1, MOST) == MOST


class Timed(Watched):
    """A step takes a hundredth of a second, and each prompt token a thousandth more."""

    now = 0.0

    def run(self, plan: StepPlan) -> list[Sampled]:
        self.now += 0.01 + 0.001 * sum(len(row.tokens) for row in plan.rows if not row.is_decode)
        return super().run(plan)


def test_the_engine_learns_from_its_steps_and_a_prompt_enters_in_pieces_beside_a_stream() -> None:
    runner = Timed(num_blocks=500)
    config = EngineConfig(max_slots=4, step_tokens=256, stretch=3.0)
    engine = LLMEngine(runner, Bytes, config, on_deltas=lambda deltas: None, clock=lambda: runner.now)
    engine.submit(ask("stream", max_tokens=200, ignore_eos=True))
    for _ in range(20):
        step(engine)
    for name in "ab":  # the first teaches it
        before = runner.now
        prompt = engine.submit(ask(name * 100, max_tokens=1))
        took: list[float] = []
        while not prompt.done():
            step(engine)
            took.append(runner.now - before)
            before = runner.now
    assert 4 <= len(took) <= 8
    assert max(took) <= 3.0 * 0.01 + 1e-6


def test_the_background_enters_in_short_pieces_and_hardly_at_all_beside_somebody_who_waits() -> None:
    learned = PrefillBudget(1.8)
    assert learned.background_budget(is_interactive=False) is None, "what a prompt token takes is not known"
    machine(learned, decode_s=0.01, token_s=0.0005)
    assert learned.background_budget(is_interactive=False) == 30, "15 ms"
    assert learned.background_budget(is_interactive=True) == 16
    machine(learned, decode_s=0.1, token_s=1.0)
    assert learned.background_budget(is_interactive=False) == FEWEST_TOKENS


def test_nothing_is_learnt_of_prompts_from_a_step_in_which_most_streams_sat_out() -> None:
    learned = PrefillBudget(1.8)
    machine(learned, decode_s=0.05, token_s=0.0005)
    before = learned.background_budget(is_interactive=False)
    for _ in range(LAST_STEPS):
        learned.record(1, 40, 0.021)
    assert learned.background_budget(is_interactive=False) == before
