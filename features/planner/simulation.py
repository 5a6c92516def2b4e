"""Replays the jobs of a trace on workers in simulated time.

    arrivals ──▶ ready window ──▶ workers            dispatcher: fills the window, counts, decides the number of workers

What is decided is decided by the product: the order of waiting jobs, the room of the window, the admission, the steps
of the engine, the rate of a worker and the number of workers. Here is only when each is asked.
"""

from bisect import insort
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

import simpy

from headrace.features.planner.arrivals import Arrival
from headrace.features.planner.rates import Rates
from headrace.features.planner.virtual_worker import Process, SimulatedJob, VirtualRunner, VirtualWorker, coarse
from headrace.store.scheduling.autoscale import QueueState, ScaleHistory, ScaleLimits, WaitingClass, decide
from headrace.store.scheduling.deficit_round_robin import AGED_EVERY, Candidate
from headrace.store.scheduling.dispatch_queries import BATCH_RANK, QueueDepth, RoundRobin
from headrace.store.scheduling.service_rate import Interval
from headrace.workers.dispatcher.autoscaler import WorkerMeter
from headrace.workers.dispatcher.dispatcher import COUNT_S, MEASURE_S, TOP_UP_S
from headrace.workers.dispatcher.ready_window import num_of_batch, num_to_announce

MOST_TOKENS = 60_000
"""A simulation with more tokens than this gets a coarser grain."""

_LEAST_OUTPUT = 8

# A deadline is looked at so often; the product's setting is HEADRACE_SWEEP_S.
_SWEEP_S = 2.0
# The dispatcher reads more heads of a flow than it is likely to take: see ``store.scheduling.dispatch_queries``.
_HEADS = 4


@dataclass(frozen=True, slots=True)
class Capacity:
    """The workers of a run: ``fixed`` so many, or as many as ``limits`` decide. The least are ready at its begin."""

    name: str
    fixed: int = 0
    limits: ScaleLimits | None = None


@dataclass(frozen=True, slots=True)
class QueueRules:
    """The settings of the queue: HEADRACE_READY_WINDOW, HEADRACE_AGEING_S and HEADRACE_BATCH_SHARE."""

    ready_window: int = 256
    ageing_s: float = 60.0
    batch_share: float = 0.75


@dataclass(slots=True)
class Run:
    """What a simulation gave. ``workers``: (seconds, number of processes) at each change. ``reasons``: of the scaling.

    ``busy_s``: the time in steps of all workers. ``grain``: so many tokens were one.
    """

    capacity: Capacity
    rates: Rates
    jobs: list[SimulatedJob]
    grain: int
    ended_at: float = 0.0
    worker_s: float = 0.0
    busy_s: float = 0.0
    workers: list[tuple[float, int]] = field(default_factory=list)
    reasons: list[tuple[float, int, str]] = field(default_factory=list)


def simulate(arrivals: Sequence[Arrival], rates: Rates, capacity: Capacity, rules: QueueRules | None = None) -> Run:
    """Return what becomes of the jobs. They must fit the KV pool of the rates (``too_long``)."""
    return _Simulation(arrivals, rates, capacity, rules or QueueRules()).run()


def grain_of(arrivals: Sequence[Arrival], rates: Rates) -> int:
    """Return how many tokens are one in a simulation of the jobs, so that it takes some seconds.

    The mean output keeps at least eight of them, and the pool keeps a block for every slot.
    """
    tokens = sum(one.output_tokens for one in arrivals)
    most = min(tokens // (_LEAST_OUTPUT * len(arrivals)), rates.kv_tokens // (16 * rates.slots))
    return max(1, min(-(-tokens // MOST_TOKENS), most))


def too_long(arrivals: Sequence[Arrival], rates: Rates) -> Arrival | None:
    """Return a job whose tokens do not fit the KV pool, if there is one."""
    grain = grain_of(arrivals, rates)
    most = VirtualRunner(rates, grain).context_window
    return next(
        (one for one in arrivals if coarse(one.prompt_tokens, grain) + coarse(one.max_tokens, grain) > most), None
    )


class _Simulation:
    def __init__(self, arrivals: Sequence[Arrival], rates: Rates, capacity: Capacity, rules: QueueRules) -> None:
        self._env = simpy.Environment()
        self._rates, self._capacity, self._rules = rates, capacity, rules
        self._jobs = [SimulatedJob(f"{number:09}", one) for number, one in enumerate(arrivals)]
        self._by_id = {job.id: job for job in self._jobs}
        self._run = Run(capacity, rates, self._jobs, grain_of(arrivals, rates))
        self._num_open = len(self._jobs)
        # Waiting jobs by flow, each in the order within it; then the announced ones.
        self._flows: dict[tuple[int, str], list[tuple[int, float, str]]] = {}
        self._oldest: deque[SimulatedJob] = deque()
        self._window: deque[SimulatedJob] = deque()
        self._round_robin = RoundRobin(rules.ageing_s)
        self._workers: deque[VirtualWorker] = deque()
        self._wakes = {name: self._env.event() for name in ("top_up", "count")}
        self._queued_at_count = self._num_left = self._started = self._started_tokens = 0
        self._running: Counter[int] = Counter()
        self._meter = WorkerMeter()
        self._history = ScaleHistory(capacity.limits.least if capacity.limits else 0)

    def run(self) -> Run:
        processes = [self._arrive(), self._top_up(), self._count(), self._expire()]
        if self._capacity.limits is not None:
            processes.append(self._scale(self._capacity.limits))
        for _ in range(self._capacity.fixed or self._history.replicas):
            self._start(is_ready=True)
        for one in processes:
            self._env.process(one)
        while self._num_open:
            self._env.step()
        self._run.ended_at = self._env.now
        self._run.worker_s = sum((one.ended_at or self._env.now) - one.started_at for one in self._workers)
        self._run.busy_s = sum(one.runner.busy_s for one in self._workers)
        return self._run

    def _arrive(self) -> Process:
        for job in self._jobs:
            yield self._env.timeout(job.arrival.at_s - self._env.now)
            self._oldest.append(job)
            # As the API: a job of the batch class waits for the dispatcher.
            if job.arrival.class_rank != BATCH_RANK and len(self._window) < self._rules.ready_window:
                self._announce([job])
            else:
                key = 5, job.deadline_at or inf, job.id
                insort(self._flows.setdefault((job.arrival.class_rank, job.arrival.tenant), []), key)
                self._wake("top_up")
            self._wake("count")

    def _top_up(self) -> Process:
        """Fill the ready window, as ``workers.dispatcher.ready_window`` does."""
        while True:
            if not any(self._flows.values()):
                yield self._wakes["top_up"]
            yield self._env.timeout(TOP_UP_S)
            waiting = sum(map(len, self._flows.values()))
            under_way = self._running[BATCH_RANK] + sum(one.arrival.class_rank == BATCH_RANK for one in self._window)
            slots = self._rates.slots * max(1, sum(one.is_live for one in self._workers))
            depth = QueueDepth("", waiting, len(self._window), None, batch_under_way=under_way, num_slots=slots)
            room = num_to_announce(depth, len(self._window), self._rules.ready_window)
            if room:
                self._announce(self._chosen(room, num_of_batch(depth, self._rules.batch_share)))

    def _chosen(self, room: int, most_batch: int | None) -> list[SimulatedJob]:
        """Return the next waiting jobs, by the product's order, and forget them. None: all may be batch jobs."""
        ids = self._heads(room)
        better = [one for one in ids if self._by_id[one].arrival.class_rank != BATCH_RANK]
        if most_batch is not None:
            room = min(room, len(better) + most_batch)
        candidates = [self._candidate(self._by_id[one]) for one in (better if most_batch == 0 else ids)]
        chosen = [self._by_id[one] for one in self._round_robin.choose("", candidates, room)]
        for job in chosen:
            self._flows[job.arrival.class_rank, job.arrival.tenant].remove((5, job.deadline_at or inf, job.id))
        return chosen

    def _heads(self, room: int) -> list[str]:
        """Return the ids of the first jobs of each flow, and of those that have waited longest."""
        share = 1 + min(room, max(2, _HEADS * room // max(1, len(self._flows))))
        heads = {job_id for flow in self._flows.values() for _, _, job_id in flow[:share]}
        waiting = (job for job in self._oldest if self._is_waiting(job))
        heads |= {job.id for job, _ in zip(waiting, range(room // AGED_EVERY + 1), strict=False)}
        return sorted(heads)

    def _is_waiting(self, job: SimulatedJob) -> bool:
        flow = self._flows.get((job.arrival.class_rank, job.arrival.tenant), ())
        return (5, job.deadline_at or inf, job.id) in flow

    def _candidate(self, job: SimulatedJob) -> Candidate:
        arrival, waited_s = job.arrival, self._env.now - job.arrival.at_s
        due = job.deadline_at or inf
        return Candidate(job.id, arrival.tenant, arrival.class_rank, 5, due, job.cost_tokens, waited_s)

    def _announce(self, jobs: Iterable[SimulatedJob]) -> None:
        self._window.extend(jobs)
        # Redis serves the worker first that has waited longest.
        for _ in range(len(self._workers)):
            self._workers[0].take()
            self._workers.rotate(-1)

    def _take_next(self) -> SimulatedJob | None:
        """Return the next announced job for a worker; none whose deadline has passed, as a claim refuses those."""
        while self._window:
            job = self._window.popleft()
            if job.ended_at is None and (job.deadline_at is None or job.deadline_at > self._env.now):
                self._num_left += 1
                self._started += 1
                self._started_tokens += job.cost_tokens
                self._running[job.arrival.class_rank] += 1
                self._wake("count")
                return job
        return None

    def _ended(self, job: SimulatedJob) -> None:
        self._running[job.arrival.class_rank] -= 1
        self._num_open -= 1

    def _expire(self) -> Process:
        """End the queued jobs whose deadline has passed."""
        while any(job.deadline_at is not None for job in self._jobs):
            yield self._env.timeout(_SWEEP_S)
            late = [job for job in self._queued() if job.deadline_at is not None and job.deadline_at <= self._env.now]
            for job in late:
                job.is_late, job.ended_at = True, self._env.now
                self._num_left += 1
                self._num_open -= 1
                if self._is_waiting(job):
                    self._flows[job.arrival.class_rank, job.arrival.tenant].remove((5, job.deadline_at or inf, job.id))

    def _queued(self) -> list[SimulatedJob]:
        """Return the jobs that have not started, oldest first."""
        while self._oldest and (self._oldest[0].started_at is not None or self._oldest[0].ended_at is not None):
            self._oldest.popleft()
        return [job for job in self._oldest if job.started_at is None and job.ended_at is None]

    def _count(self) -> Process:
        """Count what has happened, as the dispatcher's duty ``count_queued`` does."""
        while True:
            yield self._wakes["count"]
            yield self._env.timeout(COUNT_S)
            queued = len(self._queued())
            self._meter.observe(
                Interval(self._env.now, self._queued_at_count, self._num_left, self._started, self._started_tokens)
            )
            self._queued_at_count, self._num_left, self._started, self._started_tokens = queued, 0, 0, 0

    def _scale(self, limits: ScaleLimits) -> Process:
        """Decide the number of workers, and start and drain them: the autoscaler's turn and the host's."""
        while True:
            state = self._state()
            decision = decide(state, limits, self._history)
            if decision.replicas != self._history.replicas:
                self._run.reasons.append((self._env.now, decision.replicas, decision.reason))
            self._history = decision.history
            self._apply(decision.replicas)
            yield self._env.timeout(MEASURE_S)

    def _state(self) -> QueueState:
        now, live = self._env.now, sum(one.is_live for one in self._workers)
        waiting: dict[int, list[SimulatedJob]] = {}
        for job in self._queued():
            waiting.setdefault(job.arrival.class_rank, []).append(job)
        self._meter.has_workers(now, live)
        return QueueState(
            now,
            tuple(self._waiting_class(rank, jobs) for rank, jobs in sorted(waiting.items())),
            running_jobs=self._running.total(),
            workers=live,
            slots=self._rates.slots if live else None,
            load_tokens_per_s=self._meter.load(now),
            worker_tokens_per_s=self._meter.take_rate(),
            cold_start_s=self._rates.cold_start_s,
        )

    def _waiting_class(self, rank: int, jobs: Sequence[SimulatedJob]) -> WaitingClass:
        left = [job.deadline_at - self._env.now for job in jobs if job.deadline_at is not None]
        oldest_age_s = self._env.now - jobs[0].arrival.at_s
        return WaitingClass(rank, sum(job.cost_tokens for job in jobs), oldest_age_s, min(left, default=None))

    def _apply(self, replicas: int) -> None:
        staying = [one for one in self._workers if not one.is_draining]
        for _ in range(replicas - len(staying)):
            self._start(is_ready=False)
        # As ``features.hosts.scaled_host``: those that load first, then the youngest.
        for one in sorted(staying, key=lambda one: (one.is_serving, -one.started_at))[
            : max(0, len(staying) - replicas)
        ]:
            one.drain()
        self._note_workers()

    def _start(self, *, is_ready: bool) -> None:
        self._workers.append(
            VirtualWorker(
                self._env,
                self._rates,
                self._run.grain,
                is_ready=is_ready,
                take_next=self._take_next,
                on_ended=self._ended,
            )
        )
        self._note_workers()

    def _note_workers(self) -> None:
        alive = sum(one.ended_at is None for one in self._workers)
        if not self._run.workers or self._run.workers[-1][1] != alive:
            self._run.workers.append((self._env.now, alive))

    def _wake(self, name: str) -> None:
        self._wakes[name].succeed()
        self._wakes[name] = self._env.event()
