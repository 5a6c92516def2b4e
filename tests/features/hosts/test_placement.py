"""Which versions have a place: the rules one by one, and a simulated machine that hypothesis gives any load."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.features.hosts.placement import (
    PlacementPlan,
    Resident,
    Rules,
    VersionLoad,
    decide,
    forecast,
)
from headrace.store.hosts.host_reports import PlaceState

RULES = Rules(budget_bytes=4)


def serving(queue: str, memory: int = 2, in_state_s: float = 30.0, idle_s: float = 0.0) -> Resident:
    return Resident(queue, memory, PlaceState.SERVING, in_state_s, idle_s)


def load(queue: str, memory: int = 2, tokens: int = 100, wait_s: float = 1.0, load_s: float = 1.0) -> VersionLoad:
    return VersionLoad(queue, memory, load_s, tokens, wait_s)


def moves(plan: PlacementPlan) -> tuple[list[str], list[str]]:
    return [start.queue for start in plan.starts], [drain.queue for drain in plan.drains]


def test_free_memory_is_used_at_once_and_by_the_greatest_pressure_first() -> None:
    plan = decide([load("a"), load("b", tokens=900), load("c", tokens=500), load("d", tokens=0)], [], RULES)
    assert moves(plan) == (["b", "c"], [])
    assert "900 tokens" in plan.starts[0].reason


def test_the_least_recently_used_leaves_and_its_memory_is_waited_for() -> None:
    residents = [serving("a", idle_s=12), serving("b", idle_s=20)]
    plan = decide([load("c")], residents, RULES)
    assert moves(plan) == ([], ["b"])
    assert "20 s; c:" in plan.drains[0].reason
    draining = [residents[0], replace(residents[1], state=PlaceState.DRAINING)]
    assert moves(decide([load("c")], draining, RULES)) == ([], [])


def test_of_two_versions_that_wait_each_gets_the_place_of_another() -> None:
    idle = [serving("a", idle_s=12), serving("b", idle_s=20)]
    plan = decide([load("c", tokens=900), load("d")], idle, RULES)
    assert [(one.queue, one.by) for one in plan.drains] == [("b", "c"), ("a", "d")]


def test_a_version_at_work_leaves_for_much_more_work_or_after_its_turn() -> None:
    residents = [serving("a", memory=4)]
    own = load("a", memory=4, wait_s=30)
    assert moves(decide([own, load("b", tokens=11_000)], residents, RULES)) == ([], []), "not yet four times as much"
    assert moves(decide([own, load("b", tokens=13_000)], residents, RULES)) == ([], ["a"])
    assert moves(decide([own, load("b", tokens=1)], [serving("a", 4, in_state_s=61)], RULES)) == ([], ["a"])
    young = [serving("a", 4, in_state_s=9)]
    assert moves(decide([own, load("b", tokens=10**9)], young, RULES)) == ([], []), "a swap must pay"


def test_a_small_version_does_not_take_the_memory_that_an_overdue_one_waits_for() -> None:
    residents = [serving("a", 2)]
    own = replace(load("a", tokens=0), running_tokens=10**9)
    big, small = load("big", memory=4, wait_s=61), load("small", memory=2, tokens=10**6)
    assert moves(decide([own, big, small], residents, RULES)) == ([], [])
    assert moves(decide([own, replace(big, wait_s=59), small], residents, RULES)) == (["small"], [])


def test_what_never_fits_is_refused_and_an_obstacle_keeps_a_version_out() -> None:
    plan = decide([load("a", memory=5), replace(load("b"), obstacle="it failed")], [], RULES)
    assert moves(plan) == ([], [])
    assert list(plan.refused) == ["a"]
    assert "--memory" in plan.refused["a"]


def test_workers_that_have_grown_over_the_budget_leave() -> None:
    assert moves(decide([], [serving("a", 3, idle_s=1), serving("b", 3, idle_s=9)], RULES)) == ([], ["b"])


def test_the_forecast_names_the_load_the_turn_and_nothing_for_what_never_fits() -> None:
    residents = [serving("a", memory=4, in_state_s=40)]
    found = forecast([load("a", 4), load("b"), load("c", tokens=0), load("d", memory=9)], residents, RULES)
    assert found == {"b": 20 + 5 + 1, "c": 20 + 5 + 1}
    assert forecast([load("b", load_s=3)], [], RULES) == {"b": 3.0}


@dataclass
class Place:
    """A simulated worker. Times are in simulated seconds."""

    since: int
    state: PlaceState = PlaceState.STARTING
    used_at: int = 0


@dataclass
class Machine:
    """A simulated machine: each second jobs come, each worker that serves computes ``speed`` tokens."""

    versions: Mapping[str, VersionLoad]
    arrivals: Mapping[str, tuple[int, int]]  # every so many seconds, so many tokens
    speed: int = 50
    now: int = 0
    backlog: dict[str, int] = field(default_factory=dict)
    waits_since: dict[str, int] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    num_drains: int = 0
    waits: list[int] = field(default_factory=list)

    def loads(self) -> list[VersionLoad]:
        return [
            replace(one, tokens=self.backlog.get(queue, 0), wait_s=self.now - self.waits_since.get(queue, self.now))
            for queue, one in self.versions.items()
        ]

    def residents(self) -> list[Resident]:
        memory = {queue: one.memory_bytes for queue, one in self.versions.items()}
        return [
            Resident(queue, memory[queue], place.state, self.now - place.since, idle_s=self.now - place.used_at)
            for queue, place in self.places.items()
        ]

    def turn(self, rules: Rules) -> None:
        for queue, (every_s, tokens) in self.arrivals.items():
            if self.now % every_s == 0:
                self.backlog[queue] = self.backlog.get(queue, 0) + tokens
                self.waits_since.setdefault(queue, self.now)
        for queue, place in list(self.places.items()):
            self._advance(queue, place, rules)
        plan = decide(self.loads(), self.residents(), rules)
        for start in plan.starts:
            self.places[start.queue] = Place(self.now)
        for drain in plan.drains:
            self.places[drain.queue].state, self.places[drain.queue].since = PlaceState.DRAINING, self.now
            self.num_drains += 1
        self.now += 1

    def _advance(self, queue: str, place: Place, rules: Rules) -> None:
        age = self.now - place.since
        if place.state is PlaceState.STARTING and age >= self.versions[queue].load_s:
            self.waits.append(self.now - self.waits_since[queue])
            place.state, place.since = PlaceState.SERVING, self.now
        elif place.state is PlaceState.DRAINING and age >= rules.drain_s:
            del self.places[queue]
        elif place.state is PlaceState.SERVING and self.backlog.get(queue):
            place.used_at = self.now
            self.backlog[queue] = max(0, self.backlog[queue] - self.speed)
            self.waits_since[queue] = self.now
            if not self.backlog[queue]:
                del self.waits_since[queue]


SIMULATED_S = 700
VERSIONS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 90), st.integers(1, 5_000)), min_size=1, max_size=5
)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(VERSIONS, st.integers(4, 6))
def test_on_any_machine_nothing_is_over_budget_nothing_thrashes_and_nothing_starves(
    versions: Sequence[tuple[int, int, int, int]], budget: int
) -> None:
    rules = Rules(budget)
    names = [f"v{number}" for number in range(len(versions))]
    machine = Machine(
        {name: VersionLoad(name, one[0], one[1]) for name, one in zip(names, versions, strict=True)},
        {name: one[2:] for name, one in zip(names, versions, strict=True)},
    )
    longest_s = rules.longest_wait_s(len(versions), max(one[1] for one in versions))
    for _ in range(SIMULATED_S):
        machine.turn(rules)
        assert sum(one.memory_bytes for one in machine.residents()) <= budget
        waiting = {name for name in machine.waits_since if name not in machine.places}
        assert all(machine.now - machine.waits_since[name] <= longest_s for name in waiting)
    assert max(machine.waits, default=0) <= longest_s
    # Each of at most ``budget`` places keeps its version for the residence, and a drain and a load follow.
    assert machine.num_drains <= budget * (1 + SIMULATED_S / rules.residence_before(1))
