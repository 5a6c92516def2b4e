"""Fair order: against textbook deficit round robin, and what it promises whatever waits."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.store.scheduling.deficit_round_robin import AGED_EVERY, QUANTUM, Candidate, RoundRobinState, choose

AGEING_S = 60.0
BIGGEST = 3 * QUANTUM

tenants = st.sampled_from(["ten_a", "ten_b", "ten_c", "ten_d"])
costs = st.integers(0, BIGGEST)


def candidate(
    number: int, tenant: str, rank: int, priority: int, deadline: float, cost: int, waited: float
) -> Candidate:
    return Candidate(f"job_{number:04}", tenant, rank, priority, deadline, cost, waited)


candidates = st.lists(
    st.tuples(tenants, st.integers(0, 2), st.integers(0, 9), st.sampled_from([10.0, 20.0, math.inf]), costs)
).flatmap(
    lambda rows: st.lists(st.floats(0, 200), min_size=len(rows), max_size=len(rows)).map(
        lambda ages: [candidate(n, *row, age) for n, (row, age) in enumerate(zip(rows, ages, strict=True))]
    )
)


def job(number: int, tenant: str = "ten_a", rank: int = 1, cost: int = 100, waited_s: float = 0.0) -> Candidate:
    return candidate(number, tenant, rank, 5, math.inf, cost, waited_s)


def ids(jobs: Iterable[Candidate]) -> list[str]:
    return [job.id for job in jobs]


def everything(jobs: Sequence[Candidate], turns: RoundRobinState = RoundRobinState()) -> list[str]:  # noqa: B008 - it is immutable
    return ids(choose(jobs, len(jobs), turns, ageing_s=AGEING_S)[0])


def textbook(jobs: Sequence[Candidate]) -> list[str]:
    """Deficit round robin as it is written down: one round after the other, a counter for each tenant."""
    order: list[str] = []
    for rank in range(3):
        lines: dict[str, list[Candidate]] = defaultdict(list)
        for job in sorted(jobs, key=lambda job: (job.priority, job.deadline, job.id)):
            if job.class_rank == rank:
                lines[job.tenant_id].append(job)
        deficit = dict.fromkeys(sorted(lines), 0)
        while any(lines.values()):
            for tenant in deficit:
                deficit[tenant] += QUANTUM
                while lines[tenant] and max(1, lines[tenant][0].cost_tokens) <= deficit[tenant]:
                    deficit[tenant] -= max(1, lines[tenant][0].cost_tokens)
                    order.append(lines[tenant].pop(0).id)
    return order


@given(candidates)
def test_it_is_deficit_round_robin_within_classes(jobs: list[Candidate]) -> None:
    young = [replace(job, waited_s=0.0) for job in jobs]
    assert everything(young) == textbook(young)


@given(candidates, st.integers(0, 20), st.randoms(use_true_random=False))
def test_everybody_has_exactly_one_place_whatever_order_they_came_in(
    jobs: list[Candidate], n: int, random: Random
) -> None:
    chosen, _ = choose(jobs, n, RoundRobinState(), ageing_s=AGEING_S)
    assert len(chosen) == min(n, len(jobs))
    assert sorted(everything(jobs)) == sorted(ids(jobs))
    shuffled = random.sample(jobs, len(jobs))
    assert choose(shuffled, n, RoundRobinState(), ageing_s=AGEING_S) == choose(
        jobs, n, RoundRobinState(), ageing_s=AGEING_S
    )


@given(candidates, st.lists(st.integers(1, 5), min_size=1))
def test_many_small_choices_give_the_order_of_one_big_one(jobs: list[Candidate], sizes: list[int]) -> None:
    young = [replace(job, waited_s=0.0) for job in jobs]
    left, turns, order = list(young), RoundRobinState(), list[str]()
    for size in [*sizes, len(young)]:
        chosen, turns = choose(left, size, turns, ageing_s=AGEING_S)
        order += ids(chosen)
        left = [job for job in left if job not in chosen]
    assert order == everything(young)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, BIGGEST), min_size=1, max_size=5), min_size=2, max_size=4),
    st.lists(st.integers(1, 12), min_size=20, max_size=40),
)
def test_tenants_that_always_wait_get_the_same_tokens(sizes: list[list[int]], windows: list[int]) -> None:
    """Each tenant's jobs have costs of its own, and its line is filled up after every choice."""
    numbers, turns, served = count(), RoundRobinState(), dict.fromkeys(range(len(sizes)), 0)
    lines: dict[int, list[Candidate]] = {tenant: [] for tenant in served}
    for n in windows:
        for tenant, line in lines.items():
            while len(line) < 2 * n:
                number = next(numbers)
                line.append(job(number, f"ten_{tenant}", cost=sizes[tenant][number % len(sizes[tenant])]))
        chosen, turns = choose([job for line in lines.values() for job in line], n, turns, ageing_s=AGEING_S)
        for done in chosen:
            tenant = int(done.tenant_id.removeprefix("ten_"))
            served[tenant] += done.cost_tokens
            lines[tenant].remove(done)
    assert max(served.values()) - min(served.values()) <= QUANTUM + 2 * BIGGEST


@given(st.integers(1, 40), st.integers(0, 100))
def test_a_late_job_is_served_although_better_classes_never_end(num_late: int, num_turns: int) -> None:
    late = [job(n, rank=2, waited_s=AGEING_S + 1000 - n) for n in range(num_late)]
    turns, numbers, order = RoundRobinState(num_turns), count(1000), list[Candidate]()
    while len(order) < AGED_EVERY * num_late:
        online = [job(next(numbers), "ten_b", rank=0) for _ in range(5)]
        chosen, turns = choose([*late, *online], 3, turns, ageing_s=AGEING_S)
        late = [job for job in late if job not in chosen]
        order += chosen
    assert not late
    assert [job for job in order if job.class_rank == 2] == sorted(
        (j for j in order if j.class_rank == 2), key=lambda j: j.id
    )


def test_only_every_eighth_place_goes_to_age() -> None:
    late = [job(n, rank=2, waited_s=100) for n in range(20)]
    online = [job(100 + n, rank=0) for n in range(40)]
    chosen, turns = choose([*late, *online], 16, RoundRobinState(), ageing_s=AGEING_S)
    assert [job.class_rank for job in chosen] == ([0] * 7 + [2]) * 2
    chosen, _ = choose([*late, *online], 3, replace(turns, num_turns=6), ageing_s=AGEING_S)
    assert [job.class_rank for job in chosen] == [0, 2, 0]


def test_a_line_that_ran_empty_keeps_no_credit() -> None:
    """Else a tenant that comes now and then would save up for a burst."""
    small, big = job(0, cost=1), job(1, cost=2000)
    _, turns = choose([small, big], 1, RoundRobinState(), ageing_s=AGEING_S)
    assert turns.credit == {small.flow: QUANTUM - 1}
    _, turns = choose([big], 1, turns, ageing_s=AGEING_S)
    assert turns.credit == {}


def test_nobody_is_late_before_the_time() -> None:
    waiting = [job(0, rank=2, waited_s=AGEING_S - 1), *(job(n, rank=0) for n in range(1, 20))]
    assert everything(waiting)[-1] == "job_0000"


def test_priority_then_deadline_then_age_within_a_tenant() -> None:
    first = candidate(4, "ten_a", 1, 0, math.inf, 10, 0)
    soon = candidate(3, "ten_a", 1, 5, 10.0, 10, 0)
    later = candidate(2, "ten_a", 1, 5, 20.0, 10, 0)
    old, new = candidate(0, "ten_a", 1, 5, math.inf, 10, 0), candidate(1, "ten_a", 1, 5, math.inf, 10, 0)
    assert everything([new, old, later, soon, first]) == ids([first, soon, later, old, new])


def test_a_tenant_with_one_job_passes_a_tenant_with_a_thousand() -> None:
    many = [job(n, "ten_a", cost=2000) for n in range(1000)]
    chosen, turns = choose(many, 3, RoundRobinState(), ageing_s=AGEING_S)
    newcomer = job(5000, "ten_b", cost=2000)
    left = [job for job in many if job not in chosen]
    assert "job_5000" in ids(choose([*left, newcomer], 2, turns, ageing_s=AGEING_S)[0])


def test_a_job_is_late_at_the_time_and_the_longest_waiting_goes_first() -> None:
    late = [job(0, rank=2, waited_s=AGEING_S), job(1, rank=2, waited_s=AGEING_S + 1)]
    online = [job(n, rank=0) for n in range(10, 30)]
    assert [everything([*late, *online])[turn] for turn in (7, 15)] == ["job_0001", "job_0000"]
    chosen, turns = choose([*late, *online], 2, RoundRobinState(num_turns=7), ageing_s=AGEING_S)
    assert (ids(chosen), turns.num_turns) == (["job_0001", "job_0010"], 9)


def test_the_credit_of_too_many_flows_is_forgotten() -> None:
    def credit(num_tenants: int) -> int:
        waiting = [job(n, f"ten_{n:05}") for n in range(num_tenants + 1)]
        return len(choose(waiting, 1, RoundRobinState(), ageing_s=AGEING_S)[1].credit)

    assert (credit(10_000), credit(10_001)) == (10_000, 0)
