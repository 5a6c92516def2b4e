"""Who is next: the order of waiting jobs, as a pure function of what waits and of whose turn it was.

Classes go in order, but every eighth place belongs to whoever has waited longest, once that is too long. Within a
class tenants share by token cost (deficit round robin: Shreedhar and Varghese, 1995), within a tenant it is priority,
then the earliest deadline, then age. It knows no database; ``store.scheduling.dispatch_queries`` brings the candidates.

Deficit round robin gives each tenant QUANTUM tokens of credit a round and serves its jobs while the credit lasts. The
round in which a job is served follows from the cost of its tenant's line up to it,

    round = ceil((cost of the line so far - credit kept) / QUANTUM)

so the order is that of (round, place in the rotation, place in the line), and no round that serves nobody is run.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import accumulate, islice

QUANTUM = 2048
"""Tokens of credit that a tenant gets each round."""

AGED_EVERY = 8
"""Of this many places one is for the longest-waiting job."""

# So many lines' credit is remembered. Forgetting it costs a tenant less than its next job's tokens.
_MOST_LINES = 10_000

Line = tuple[int, str]
"""A class and a tenant: jobs of one line overtake each other by priority and deadline only."""


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
    def line(self) -> Line:
        """Where it waits."""
        return self.class_rank, self.tenant_id


@dataclass(frozen=True, slots=True)
class Turns:
    """What one choice leaves for the next: how many places were given, who was last in each class, who kept credit."""

    num_places: int = 0
    last: Mapping[int, str] = field(default_factory=dict)
    credit: Mapping[Line, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Turn:
    """When a job is served in its class: in which round, and after how many tenants of that round."""

    round: int
    rotation: int
    job: Candidate


def choose(jobs: Iterable[Candidate], n: int, turns: Turns, *, ageing_s: float) -> tuple[list[Candidate], Turns]:
    """Return the next ``n`` of the jobs, in order, and whose turn it is after them."""
    waiting = list(jobs)
    aged = _aged(waiting, (turns.num_places + n) // AGED_EVERY - turns.num_places // AGED_EVERY, ageing_s)
    overtaking = {job.id for job in aged}
    order = _in_turn((job for job in waiting if job.id not in overtaking), turns)
    chosen = list(islice(_merge(order, aged, turns.num_places), n))
    return chosen, _after(turns, order, {job.id for job in chosen})


def _aged(waiting: Iterable[Candidate], most: int, ageing_s: float) -> list[Candidate]:
    late = [job for job in waiting if job.waited_s >= ageing_s]
    return sorted(late, key=lambda job: (-job.waited_s, job.id))[:most]


def _in_turn(jobs: Iterable[Candidate], turns: Turns) -> list[_Turn]:
    """Return every job in the order of classes, rounds and tenants."""
    lines: dict[Line, list[Candidate]] = defaultdict(list)
    for job in jobs:
        lines[job.line].append(job)
    found = [
        turn for place, line in enumerate(_rotated(lines, turns)) for turn in _line_turns(lines[line], place, turns)
    ]
    # A stable sort: the jobs of a line stay in their order.
    return sorted(found, key=lambda turn: (turn.job.class_rank, turn.round, turn.rotation))


def _rotated(lines: Iterable[Line], turns: Turns) -> list[Line]:
    """Begin each class with the tenant after the one that was served last."""
    return sorted(lines, key=lambda line: (line[0], line[1] <= turns.last.get(line[0], ""), line[1]))


def _line_turns(line: Sequence[Candidate], rotation: int, turns: Turns) -> Iterator[_Turn]:
    jobs = sorted(line, key=lambda job: (job.priority, job.deadline, job.id))
    credit = turns.credit.get(jobs[0].line, 0)
    for job, cost in zip(jobs, accumulate(max(1, job.cost_tokens) for job in jobs), strict=True):
        yield _Turn(max(0, -(-(cost - credit) // QUANTUM)), rotation, job)


def _merge(order: Iterable[_Turn], aged: Iterable[Candidate], num_places: int) -> Iterator[Candidate]:
    in_turn, overtaking = deque(turn.job for turn in order), deque(aged)
    while in_turn or overtaking:
        num_places += 1
        is_aged = overtaking and (num_places % AGED_EVERY == 0 or not in_turn)
        yield (overtaking if is_aged else in_turn).popleft()


def _after(turns: Turns, order: Sequence[_Turn], chosen: Set[str]) -> Turns:
    """Return the state in which the last of each class's turns leaves it."""
    last: dict[int, _Turn] = {}
    spent: dict[Line, int] = defaultdict(int)
    unserved: dict[Line, _Turn] = {}
    for turn in order:
        if turn.job.id in chosen:
            last[turn.job.class_rank] = turn
            spent[turn.job.line] += max(1, turn.job.cost_tokens)
        else:
            unserved[turn.job.line] = turn
    # A line that has none left loses its credit; of a class that had no turn nothing changes.
    credit = {line: held for line, held in turns.credit.items() if line not in spent}
    for line, turn in unserved.items():
        if line[0] in last:
            credit[line] = turns.credit.get(line, 0) + _rounds(last[line[0]], turn) * QUANTUM - spent[line]
    return Turns(
        num_places=turns.num_places + len(chosen),
        last={**turns.last, **{rank: turn.job.tenant_id for rank, turn in last.items()}},
        credit=credit if len(credit) <= _MOST_LINES else {},
    )


def _rounds(last: _Turn, turn: _Turn) -> int:
    """Return how many rounds' credit the turn's tenant has got by the time that ``last`` was served."""
    return last.round if turn.rotation <= last.rotation else max(0, last.round - 1)
