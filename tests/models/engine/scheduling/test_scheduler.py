"""Single decisions of the scheduler: which requests run, in which order, and which are preempted."""

import pytest

from headrace.models.engine.block_manager import BlockPool
from headrace.models.engine.runner import StepPlan
from headrace.models.engine.scheduling.scheduler import FEWEST_TOKENS, LAST_STEPS, PrefillBudget, Scheduler
from headrace.models.engine.sequence import SequenceState
from tests.models.engine.rig import ask, seq


class Bench:
    """A scheduler with a model that always answers "a"."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_tokens: int = 4,
        max_slots: int = 8,
        step_tokens: int = 16,
        prefill_budget: PrefillBudget | None = None,
    ) -> None:
        self.pool = BlockPool(num_blocks, block_tokens)
        self.scheduler = Scheduler(
            self.pool, max_slots=max_slots, step_tokens=step_tokens, prefill_budget=prefill_budget
        )
        self.inside: dict[str, SequenceState] = {}

    def add(self, name: str, num_prompt: int, *, salt: str | None = None, class_rank: int = 0) -> SequenceState:
        """All prompts are alike. Requests of one salt share blocks; without a salt a request shares none."""
        request = ask("p" * num_prompt, request_id=name, max_tokens=100, salt=salt or name, class_rank=class_rank)
        self.inside[name] = seq(request)
        self.scheduler.add(self.inside[name])
        return self.inside[name]

    def step(self) -> list[tuple[str, int]]:
        """Run a step, and return each row's request and number of tokens."""
        plan = self.scheduler.schedule() or StepPlan(())
        self.scheduler.postprocess(plan)
        for row in plan.rows:
            if row.sample:
                self.inside[row.request.id].add(ord("a"), now=0.0)
        return [(row.request.id, len(row.tokens)) for row in plan.rows]

    def running(self) -> list[str]:
        return [request.id for request in self.scheduler.running]

    def waiting(self) -> list[str]:
        return [request.id for request in self.scheduler.waiting]


def test_nothing_inside_is_no_plan() -> None:
    assert Bench().scheduler.schedule() is None


def test_a_long_prompt_enters_in_chunks_beside_running_streams() -> None:
    bench = Bench(step_tokens=10)
    bench.add("stream", 3)
    assert bench.step() == [("stream", 3)]
    bench.add("long", 25)
    assert bench.step() == [("stream", 1), ("long", 9)]
    assert bench.step() == [("stream", 1), ("long", 9)]
    assert bench.step() == [("stream", 1), ("long", 7)]
    assert bench.step() == [("stream", 1), ("long", 1)]


def test_the_rest_of_the_budget_goes_to_the_next_prompt() -> None:
    bench = Bench(step_tokens=10)
    bench.add("first", 7)
    bench.add("second", 7)
    assert bench.step() == [("first", 7), ("second", 3)]
    assert bench.step() == [("first", 1), ("second", 4)]
    assert bench.step() == [("first", 1), ("second", 1)]


def test_no_more_run_than_there_are_slots() -> None:
    bench = Bench(max_slots=2)
    for name in ("one", "two", "three"):
        bench.add(name, 2)
    bench.step()
    assert (bench.running(), bench.waiting()) == (["one", "two"], ["three"])
    bench.scheduler.remove(bench.inside["one"])
    assert bench.step() == [("two", 1), ("three", 2)]


def test_no_more_run_than_the_budget_has_tokens() -> None:
    bench = Bench(max_slots=8, step_tokens=2)
    for name in ("one", "two", "three"):
        bench.add(name, 1)
    bench.step()
    assert bench.step() == [("one", 1), ("two", 1)]
    assert (bench.running(), bench.waiting()) == (["one", "two"], ["three"])


def test_the_youngest_gives_way_and_comes_back_before_newcomers() -> None:
    bench = Bench(num_blocks=5, block_tokens=4)
    bench.add("old", 4)
    bench.add("young", 4)
    bench.step()  # both hold one block, which is full
    bench.step()  # both take a second one; one is left
    bench.add("new", 4)
    for _ in range(4):
        bench.step()  # in the fourth "old" takes the last block, and "young" sits the step out
    assert bench.scheduler.num_preempted == 0
    assert bench.running() == ["old", "young"]
    for _ in range(4):
        bench.step()
    assert bench.scheduler.num_preempted == 1
    assert (bench.running(), bench.waiting()) == (["old"], ["young", "new"])
    assert bench.inside["young"].num_cached == 0
    bench.scheduler.remove(bench.inside["old"])
    assert bench.step() == [("young", 5), ("new", 4)]  # of its nine tokens, "old" took one full block and not the other
    assert bench.inside["young"].num_found == 0, "it finds nothing that it had not computed itself"


def test_a_better_class_goes_first_and_within_a_class_the_older() -> None:
    bench = Bench(max_slots=3, step_tokens=10)
    for name, class_rank in (("oldest", 2), ("batch", 2), ("standard", 1), ("first", 0), ("second", 0)):
        bench.add(name, 4, class_rank=class_rank)
    assert bench.step() == [("oldest", 4), ("first", 4), ("second", 2)]
    assert bench.waiting() == ["standard", "batch"]


def test_the_worst_class_gives_way_before_the_youngest_does() -> None:
    bench = Bench(num_blocks=7, block_tokens=4)
    bench.add("oldest", 4)
    bench.add("batch", 4, class_rank=2)
    bench.add("later batch", 4, class_rank=2)
    bench.add("young", 4)
    bench.step()
    while len(bench.running()) > 2:
        bench.step()
    assert (bench.running(), bench.waiting()) == (["oldest", "young"], ["batch", "later batch"])


def test_a_better_class_takes_the_place_of_a_worse_one_if_that_makes_room() -> None:
    bench = Bench(num_blocks=9, block_tokens=4, max_slots=4, step_tokens=24)
    for name in ("oldest", "batch", "later batch"):
        bench.add(name, 8, class_rank=2)
    bench.step()
    bench.step()
    assert bench.pool.num_free == 0
    bench.add("huge", 24, class_rank=0)
    bench.step()
    assert (bench.scheduler.num_preempted, bench.waiting()) == (0, ["huge"]), "all would not be enough"
    bench.scheduler.remove(bench.inside["huge"])
    bench.add("small", 8, class_rank=0)
    bench.step()
    assert (bench.running(), bench.waiting()) == (["oldest", "small"], ["batch", "later batch"])


@pytest.mark.parametrize(("oldest", "salt", "most"), [("b", "a", 24), ("b", "b", 40), ("o", "b", 40)])
def test_nobody_gives_way_in_vain_whatever_blocks_are_shared(oldest: str, salt: str, most: int) -> None:
    """Of 12 blocks 5 are free, 4 are of all requests with the salt "b", and each request has one of its own."""
    for num_prompt, waiting in ((most, ["batch", "later batch"]), (most + 1, ["person"])):
        bench = Bench(num_blocks=12, block_tokens=4, step_tokens=64)
        bench.add("oldest", 17 if oldest == "b" else 1, salt=oldest, class_rank=2)
        for name in ("batch", "later batch"):
            bench.add(name, 17, salt="b", class_rank=2)
        for _ in range(3):
            bench.step()
        assert (len(bench.running()), bench.pool.num_free) == (3, 5)
        bench.add("person", num_prompt, salt=salt)
        bench.step()
        assert bench.waiting() == waiting


def test_a_slot_is_taken_from_a_worse_class_and_not_from_an_equal() -> None:
    bench = Bench(max_slots=2)
    bench.add("oldest", 2, class_rank=2)
    bench.add("batch", 2, class_rank=2)
    bench.step()
    bench.add("standard", 2, class_rank=1)
    bench.add("later", 2, class_rank=1)
    bench.step()
    assert (bench.running(), bench.waiting()) == (["oldest", "standard"], ["later", "batch"])


def test_whoever_becomes_the_oldest_runs_whatever_its_class() -> None:
    """Interactive requests keep coming, more than there are slots for, and the batch ones end all the same."""
    bench = Bench(num_blocks=12, block_tokens=4, max_slots=2)
    bench.add("oldest", 8)
    bench.add("batch", 8, class_rank=2)
    for number in range(40):
        bench.add(f"interactive {number}", 8)
        bench.step()
        assert bench.running()[0] == next(iter(bench.inside))
        if number % 3 == 2:
            bench.scheduler.remove(bench.inside.pop(bench.running()[0]))
    assert "batch" not in bench.inside


def test_a_request_that_fits_does_not_overtake_one_that_does_not_yet() -> None:
    bench = Bench(num_blocks=6, block_tokens=4)
    bench.add("running", 12)
    bench.step()
    bench.add("big", 16)
    bench.add("small", 1)
    bench.step()
    assert bench.waiting() == ["big", "small"]


def test_admission_leaves_a_block_for_each_running_request() -> None:
    bench = Bench(num_blocks=4, block_tokens=4)
    bench.add("running", 8)
    bench.step()
    bench.add("waits", 5)
    bench.step()
    assert bench.waiting() == ["waits"]  # two blocks were free, and "running" has taken one of them


def test_a_beginning_that_is_there_is_not_computed_again_except_for_the_last_token() -> None:
    bench = Bench()
    bench.add("first", 12, salt="same")
    bench.step()
    bench.add("equal", 12, salt="same")
    bench.add("longer", 14, salt="same")
    bench.add("shorter", 7, salt="same")
    bench.add("other", 12, salt="another")
    assert bench.step() == [("first", 1), ("equal", 4), ("longer", 2), ("shorter", 3), ("other", 6)]
    assert [bench.inside[name].num_found for name in bench.inside] == [0, 8, 12, 4, 0]
    assert bench.scheduler.num_cached_prompt_tokens == 24
    tables = [request.blocks for request in bench.scheduler.running]
    assert tables[0][:2] == tables[1][:2] == tables[2][:2]
    assert tables[0][0] == tables[3][0]
    bench.pool.check(tables)


def test_what_was_computed_is_found_after_its_request_has_left_and_the_output_too() -> None:
    bench = Bench(num_blocks=8)
    chat = bench.add("chat", 6, salt="same")
    for _ in range(6):
        bench.step()
    bench.scheduler.remove(chat)
    assert (bench.pool.num_free, bench.pool.num_cached) == (8, 2)
    bench.inside["turn"] = seq(ask("pppppp" + "a" * 6 + "pppp", request_id="turn", salt="same"))
    bench.scheduler.add(bench.inside["turn"])
    assert bench.step() == [("turn", 8)]
    assert bench.inside["turn"].num_found == 8


def test_who_begins_like_an_older_one_waits_for_it_and_takes_over_what_it_computes() -> None:
    bench = Bench(step_tokens=10)
    bench.add("first", 22, salt="same")
    bench.add("second", 15, salt="same")
    bench.add("third", 9, salt="same")
    bench.add("other", 5)
    assert bench.step() == [("first", 10)]
    assert bench.step() == [("first", 10)]  # "second" would begin with block 2, which is being filled
    # "third" found both of its blocks in the step before, and came after the budget's end.
    assert bench.step() == [("first", 2), ("second", 3), ("third", 1), ("other", 4)]
    assert [bench.inside[name].num_found for name in bench.inside] == [0, 12, 8, 0]
    bench.pool.check([request.blocks for request in bench.scheduler.running])


def test_what_an_older_one_computes_in_this_step_is_not_computed_beside_it() -> None:
    bench = Bench(step_tokens=24)
    bench.add("first", 22, salt="same")
    bench.add("second", 15, salt="same")
    bench.add("other", 5)
    assert bench.step() == [("first", 22), ("other", 2)]
    assert bench.step() == [("first", 1), ("second", 3), ("other", 3)]


def test_of_a_request_that_failed_nothing_is_found() -> None:
    bench = Bench()
    bench.add("first", 8, salt="same")
    bench.step()
    bench.add("second", 12, salt="same")
    bench.step()
    bench.scheduler.remove(bench.inside["second"], is_sound=False)
    assert bench.pool.num_cached == 0
    bench.add("third", 12, salt="same")
    assert bench.step() == [("first", 1), ("third", 12)]


def test_blocks_that_are_kept_give_way_to_those_that_are_needed() -> None:
    bench = Bench(num_blocks=6)
    gone = bench.add("gone", 16, salt="same")
    bench.step()
    bench.scheduler.remove(gone)
    bench.add("big", 20)
    assert bench.step() == [("big", 16)]
    assert bench.pool.num_evicted == 3
    bench.scheduler.remove(bench.inside["big"])
    bench.add("again", 16, salt="same")
    assert bench.step() == [("again", 12)]


def test_leaving_frees_the_blocks_at_once() -> None:
    bench = Bench(num_blocks=8)
    gone = bench.add("gone", 9)
    bench.add("waiting", 9)
    bench.step()
    bench.scheduler.remove(gone)
    bench.scheduler.remove(bench.inside["waiting"])
    assert bench.pool.num_free == 8
    assert bench.scheduler.schedule() is None


def test_the_background_sits_out_while_somebody_waits_for_a_first_token() -> None:
    bench = Bench(step_tokens=16)
    for name in ("oldest", "decoding"):
        bench.add(name, 3, class_rank=2)
    bench.step()
    bench.add("prompt", 20, class_rank=2)
    assert bench.step() == [("oldest", 1), ("decoding", 1), ("prompt", 14)]
    bench.add("person", 18)
    # Two chunks, beside only the oldest request, which never stops.
    assert bench.step() == [("oldest", 1), ("person", 15)]
    assert bench.step() == [("oldest", 1), ("person", 3)]
    # From the first token on all requests run, and no computed token is lost.
    assert bench.step() == [("oldest", 1), ("person", 1), ("decoding", 1), ("prompt", 6)]
    assert bench.scheduler.num_preempted == 0


def test_the_background_does_not_wait_for_itself() -> None:
    bench = Bench(step_tokens=16)
    for name in ("first", "second"):
        bench.add(name, 12, class_rank=2)
    assert bench.step() == [("first", 12), ("second", 4)]
    assert bench.step() == [("first", 1), ("second", 8)]


def test_the_oldest_of_the_background_does_not_hold_up_a_prompt() -> None:
    prefill_budget = PrefillBudget(1.8)
    for _ in range(LAST_STEPS):
        prefill_budget.record(1, 0, 0.01)
        prefill_budget.record(1, 40, 0.05)
    bench = Bench(step_tokens=64, prefill_budget=prefill_budget)
    bench.add("oldest", 3, class_rank=2)
    assert bench.step() == [("oldest", 3)]
    bench.add("person", 50)
    assert bench.step() == [("oldest", 1), ("person", 50)]
    # A seeded request has its own random stream.
    bench.add("next", 50)
    assert bench.step() == [("oldest", 1), ("person", 1), ("next", FEWEST_TOKENS)]


def learned_budget() -> PrefillBudget:
    prefill_budget = PrefillBudget(1.8)
    for _ in range(LAST_STEPS):
        prefill_budget.record(1, 0, 0.01)
        prefill_budget.record(1, 40, 0.05)
    return prefill_budget


def test_all_prompts_of_the_background_share_its_tokens() -> None:
    bench = Bench(step_tokens=64, prefill_budget=learned_budget())
    for name in ("oldest", "second", "third"):
        bench.add(name, 12, class_rank=2)
    assert bench.step() == [("oldest", 12), ("second", FEWEST_TOKENS - 12)]


def test_prompts_that_have_no_slot_yet_count_among_those_that_wait() -> None:
    bench = Bench(max_slots=2, step_tokens=64, prefill_budget=learned_budget())
    bench.add("stream", 3)
    bench.step()
    bench.add("prompt", 50)
    bench.add("waits", 50)
    assert bench.step() == [("stream", 1), ("prompt", 50)]
    assert bench.waiting() == ["waits"]


def test_no_block_is_kept_for_a_token_that_a_request_may_not_have() -> None:
    for max_tokens, num_blocks in ((2, 2), (3, 2), (9, 3)):
        scheduler = Scheduler(BlockPool(64, 4), max_slots=8, step_tokens=16, lookahead_tokens=5)
        request = seq(ask("pppp", max_tokens=max_tokens))
        scheduler.add(request)
        scheduler.postprocess(scheduler.schedule() or StepPlan(()))
        request.add(ord("a"), now=0.0)
        plan = scheduler.schedule()
        assert plan is not None
        assert len(plan.rows[0].blocks) == num_blocks, max_tokens
