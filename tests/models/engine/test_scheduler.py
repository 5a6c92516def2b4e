"""Single decisions of the scheduler: who runs, in which order, and who gives way."""

from models.engine.blocks import BlockPool
from models.engine.live import LiveRequest
from models.engine.runner import StepPlan
from models.engine.scheduler import Scheduler
from tests.models.engine.rig import ask, live


class Bench:
    """A scheduler with a model that says "a" to everything."""

    def __init__(
        self, *, num_blocks: int = 64, block_tokens: int = 4, max_slots: int = 8, step_tokens: int = 16
    ) -> None:
        self.pool = BlockPool(num_blocks, block_tokens)
        self.scheduler = Scheduler(self.pool, max_slots=max_slots, step_tokens=step_tokens)
        self.inside: dict[str, LiveRequest] = {}

    def add(self, name: str, num_prompt: int) -> LiveRequest:
        self.inside[name] = live(ask("p" * num_prompt, request_id=name, max_tokens=100))
        self.scheduler.add(self.inside[name])
        return self.inside[name]

    def step(self) -> list[tuple[str, int]]:
        """Run a step, and return each row's request and number of tokens."""
        plan = self.scheduler.plan() or StepPlan(())
        self.scheduler.record(plan)
        for row in plan.rows:
            if row.sample:
                self.inside[row.request.id].add(ord("a"), now=0.0)
        return [(row.request.id, len(row.tokens)) for row in plan.rows]

    def running(self) -> list[str]:
        return [request.id for request in self.scheduler.running]

    def waiting(self) -> list[str]:
        return [request.id for request in self.scheduler.waiting]


def test_nothing_inside_is_no_plan() -> None:
    assert Bench().scheduler.plan() is None


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
    resumed = bench.inside["young"]
    assert bench.step() == [("young", resumed.num_tokens - 1), ("new", 4)]  # all of it, and one more came of it


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


def test_leaving_frees_the_blocks_at_once() -> None:
    bench = Bench(num_blocks=8)
    gone = bench.add("gone", 9)
    bench.add("waiting", 9)
    bench.step()
    bench.scheduler.remove(gone)
    bench.scheduler.remove(bench.inside["waiting"])
    assert bench.pool.num_free == 8
    assert bench.scheduler.plan() is None
