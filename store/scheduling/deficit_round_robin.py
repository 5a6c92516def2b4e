"""Deficit round robin (Shreedhar and Varghese, 1995): the order of waiting jobs, as a pure function.

Classes are served in order, except that every eighth turn goes to the job that has waited longest, once it has waited
too long. Within a class tenants share by token cost. Within a tenant the order is priority, then the earliest
deadline, then age. There is no database here; ``store.scheduling.dispatch_queries`` reads the candidates.

Deficit round robin gives each tenant QUANTUM tokens of credit a round and serves its jobs while the credit lasts. A
flow is the jobs of one tenant in one class. The round of a job follows from the cost of its flow up to it:

    round = ceil((cost of the flow so far - credit left) / QUANTUM)

So the order is (round, position in the rotation, position in the flow), and rounds without a job cost nothing.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import accumulate, islice

QUANTUM = 2048
"""Tokens of credit for a tenant in each round."""

AGED_EVERY = 8
"""One of this many turns is for the longest-waiting job."""

# The credit of at most so many flows is kept. Losing it costs a tenant less than the tokens of its next job.
_MOST_FLOWS = 10_000

Flow = tuple[int, str]
"""A class and a tenant. Jobs of one flow overtake each other only by priority and deadline."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A waiting job. ``deadline`` is in Unix seconds, infinite without one."""

    id: str
    tenant_id: str
    class_rank: int
    priority: int
    deadline: float
    cost_tokens: int
    waited_s: float

    @property
    def flow(self) -> Flow:
        """The flow of the job."""
        return self.class_rank, self.tenant_id


@dataclass(frozen=True, slots=True)
class RoundRobinState:
    """The state between two choices: number of turns, last served tenant of each class, credit left of each flow."""

    num_turns: int = 0
    last: Mapping[int, str] = field(default_factory=dict)
    credit: Mapping[Flow, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Turn:
    """The turn of a job in its class: the round, and the tenant's position in the rotation."""

    round: int
    rotation: int
    job: Candidate


def choose(
    jobs: Iterable[Candidate], n: int, state: RoundRobinState, *, ageing_s: float
) -> tuple[list[Candidate], RoundRobinState]:
    """Return the next ``n`` of the jobs, in order, and the state after them."""
    waiting = list(jobs)
    aged = _aged(waiting, (state.num_turns + n) // AGED_EVERY - state.num_turns // AGED_EVERY, ageing_s)
    overtaking = {job.id for job in aged}
    order = _in_turn((job for job in waiting if job.id not in overtaking), state)
    chosen = list(islice(_merge(order, aged, state.num_turns), n))
    return chosen, _after(state, order, {job.id for job in chosen})


def _aged(waiting: Iterable[Candidate], most: int, ageing_s: float) -> list[Candidate]:
    late = [job for job in waiting if job.waited_s >= ageing_s]
    return sorted(late, key=lambda job: (-job.waited_s, job.id))[:most]


def _in_turn(jobs: Iterable[Candidate], state: RoundRobinState) -> list[_Turn]:
    """Return every job in the order of classes, rounds and tenants."""
    flows: dict[Flow, list[Candidate]] = defaultdict(list)
    for job in jobs:
        flows[job.flow].append(job)
    found = [
        turn
        for rotation, flow in enumerate(_rotated(flows, state))
        for turn in _flow_turns(flows[flow], rotation, state)
    ]
    # A stable sort: the jobs of a flow stay in their order.
    return sorted(found, key=lambda turn: (turn.job.class_rank, turn.round, turn.rotation))


def _rotated(flows: Iterable[Flow], state: RoundRobinState) -> list[Flow]:
    """Return the flows in order; each class begins with the tenant after the one that was served last."""
    return sorted(flows, key=lambda flow: (flow[0], flow[1] <= state.last.get(flow[0], ""), flow[1]))


def _flow_turns(flow: Sequence[Candidate], rotation: int, state: RoundRobinState) -> Iterator[_Turn]:
    jobs = sorted(flow, key=lambda job: (job.priority, job.deadline, job.id))
    credit = state.credit.get(jobs[0].flow, 0)
    for job, cost in zip(jobs, accumulate(max(1, job.cost_tokens) for job in jobs), strict=True):
        yield _Turn(max(0, -(-(cost - credit) // QUANTUM)), rotation, job)


def _merge(order: Iterable[_Turn], aged: Iterable[Candidate], num_turns: int) -> Iterator[Candidate]:
    in_turn, overtaking = deque(turn.job for turn in order), deque(aged)
    while in_turn or overtaking:
        num_turns += 1
        is_aged = overtaking and (num_turns % AGED_EVERY == 0 or not in_turn)
        yield (overtaking if is_aged else in_turn).popleft()


def _after(state: RoundRobinState, order: Sequence[_Turn], chosen: Set[str]) -> RoundRobinState:
    """Return the state after the chosen jobs were served."""
    last: dict[int, _Turn] = {}
    spent: dict[Flow, int] = defaultdict(int)
    unserved: dict[Flow, _Turn] = {}
    for turn in order:
        if turn.job.id in chosen:
            last[turn.job.class_rank] = turn
            spent[turn.job.flow] += max(1, turn.job.cost_tokens)
        else:
            unserved[turn.job.flow] = turn
    # A flow without jobs left loses its credit. Nothing changes in a class that had no turn.
    credit = {flow: left for flow, left in state.credit.items() if flow not in spent}
    for flow, turn in unserved.items():
        if flow[0] in last:
            credit[flow] = state.credit.get(flow, 0) + _rounds(last[flow[0]], turn) * QUANTUM - spent[flow]
    return RoundRobinState(
        num_turns=state.num_turns + len(chosen),
        last={**state.last, **{rank: turn.job.tenant_id for rank, turn in last.items()}},
        credit=credit if len(credit) <= _MOST_FLOWS else {},
    )


def _rounds(last: _Turn, turn: _Turn) -> int:
    """Return how many rounds of credit the tenant of ``turn`` has got when ``last`` is served."""
    return last.round if turn.rotation <= last.rotation else max(0, last.round - 1)
