"""A worker in simulated time: the product's engine and admission, with a runner that only says how long a step takes.

One token of the simulation stands for ``grain`` tokens, in prompts, outputs, budgets and the KV pool alike, so that a
long trace takes a short time.
"""

from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import simpy

from headrace.features.planner.arrivals import Arrival
from headrace.features.planner.rates import Rates
from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import CompletionOutput, EngineRequest, FinishReason, SamplingParams
from headrace.models.engine.runner import Sampled, StepPlan
from headrace.workers.runs.engine_admission import EngineAdmission, Ticket

_BLOCK_TOKENS = 16
_EOS = 1
Process = Generator[simpy.Event, Any, None]


@dataclass(slots=True, eq=False)
class SimulatedJob:
    """A job on its way. Times are seconds of the simulation; None: not reached."""

    id: str
    arrival: Arrival
    started_at: float | None = None
    first_token_at: float | None = None
    ended_at: float | None = None
    is_late: bool = False

    @property
    def deadline_at(self) -> float | None:
        """When it must have ended."""
        return None if self.arrival.deadline_s is None else self.arrival.at_s + self.arrival.deadline_s

    @property
    def cost_tokens(self) -> int:
        """What the job counts for in the queue."""
        return self.arrival.prompt_tokens + self.arrival.max_tokens


class VirtualRunner:
    """A ``Runner`` that computes nothing: ``now`` advances by the time that the step would take."""

    spare_tokens = 0
    lookahead_tokens = 0
    eos_token_ids = frozenset({_EOS})
    default_settings: Mapping[str, int] = {}
    block_tokens = _BLOCK_TOKENS

    def __init__(self, rates: Rates, grain: int) -> None:
        self.num_blocks = max(1, rates.kv_tokens // (_BLOCK_TOKENS * grain))
        self.context_window = self.num_blocks * _BLOCK_TOKENS
        self.now = 0.0
        self.busy_s = 0.0
        self._rates = rates
        self._grain = grain
        self._lengths: dict[str, int] = {}

    def will_end(self, request_id: str, num_output: int) -> None:
        """Let the request end after so many tokens."""
        self._lengths[request_id] = num_output

    def run(self, plan: StepPlan) -> list[Sampled]:
        """Let the time of the step pass; return a token for each row with ``sample``."""
        num_decode = sum(row.is_decode for row in plan.rows)
        seconds = self._rates.step_s(num_decode, plan.num_tokens - num_decode, self._grain)
        self.now += seconds
        self.busy_s += seconds
        return [
            Sampled(row.request.id, _EOS if len(row.output) + 1 >= self._lengths[str(row.request.id)] else 0)
            for row in plan.rows
            if row.sample
        ]

    def check(self, request: EngineRequest) -> None:
        """Take any request."""

    def forget(self, request_id: Any) -> None:
        """Drop the length of a request that has ended."""
        self._lengths.pop(request_id, None)


class NoText:
    """A detokenizer without text."""

    def add(self, token_id: int) -> str:
        """Return no text."""
        return ""

    def flush(self) -> str:
        """Return no text."""
        return ""


class VirtualWorker:
    """One worker. ``take_next`` returns the next announced job, or None; ``on_ended`` is told of each that has ended.

    It is ready after the cold start of its rates, or at once.
    """

    def __init__(
        self,
        env: simpy.Environment,
        rates: Rates,
        grain: int,
        *,
        is_ready: bool,
        take_next: Callable[[], SimulatedJob | None],
        on_ended: Callable[[SimulatedJob], None],
    ) -> None:
        self._env = env
        self._rates = rates
        self._grain = grain
        self._take_next = take_next
        self._on_ended = on_ended
        self.runner = VirtualRunner(rates, grain)
        self._is_stepping = False
        # Slots for the fast lane are left out: it is for tenants that have little.
        self._engine = LLMEngine(
            self.runner,
            NoText,
            EngineConfig(rates.slots, rates.step_tokens, speculation=False),
            on_deltas=lambda _deltas: None,
            clock=lambda: self.runner.now if self._is_stepping else env.now,
        )
        self._admission = EngineAdmission(self._engine, max_jobs=2 * rates.slots, max_slots=rates.slots)
        self._work = env.event()
        self._num_jobs = self._num_in_engine = 0
        self._completed: list[simpy.Event] = []
        self.started_at = env.now
        self.ended_at: float | None = None
        self.is_serving = False
        self.is_draining = False
        env.process(self._live(0.0 if is_ready else rates.cold_start_s))

    @property
    def is_live(self) -> bool:
        """True while it counts as live: a worker that drains has left."""
        return self.is_serving and not self.is_draining

    def drain(self) -> None:
        """Take no more jobs, and end after the last one."""
        self.is_draining = True
        self._admission.close()
        self._wake()

    def take(self) -> None:
        """Take announced jobs while there is room for them."""
        while self.is_serving and not self.is_draining and self._admission.has_room():
            job = self._take_next()
            if job is None:
                return
            self._num_jobs += 1
            self._env.process(self._run(job, self._admission.take()))

    def _live(self, start_s: float) -> Process:
        yield self._env.timeout(start_s)
        self.is_serving = not self.is_draining
        self.take()
        while self._num_jobs or not self.is_draining:
            if not self._num_in_engine:
                yield self._work
                continue
            self._is_stepping, self.runner.now = True, self._env.now
            self._engine.step()
            self._is_stepping = False
            completed, self._completed = self._completed, []
            yield self._env.timeout(self.runner.now - self._env.now)
            for event in completed:
                event.succeed()
        self.ended_at = self._env.now

    def _run(self, job: SimulatedJob, ticket: Ticket) -> Process:
        job.started_at = self._env.now
        yield self._env.timeout(self._rates.overhead_s)
        request = self._request(job)
        done = self._env.event()
        self.runner.will_end(job.id, coarse(job.arrival.output_tokens, self._grain))
        future = self._engine.submit(request)
        self._num_in_engine += 1
        future.add_done_callback(lambda _future: self._left(done))
        with self._admission.working_on(ticket):
            self._admission.entered(len(request.prompt), request.sampling.max_tokens)
        submitted_at = self._env.now
        self._wake()
        self.take()
        yield done
        self._settle(job, future, submitted_at)
        with self._admission.working_on(ticket):
            self._admission.left()
        self._admission.give_back(ticket)
        self._num_jobs -= 1
        self._on_ended(job)
        self._wake()
        self.take()

    def _left(self, done: simpy.Event) -> None:
        """Note that a request has left the engine; its job knows at the end of the step."""
        self._num_in_engine -= 1
        self._completed.append(done)

    def _request(self, job: SimulatedJob) -> EngineRequest:
        # Each job has a salt of its own, so no prefix is shared.
        return EngineRequest(
            job.id,
            (0,) * coarse(job.arrival.prompt_tokens, self._grain),
            SamplingParams(max_tokens=coarse(job.arrival.max_tokens, self._grain)),
            deadline=job.deadline_at,
            cache_salt=job.id,
            class_rank=job.arrival.class_rank,
        )

    def _settle(self, job: SimulatedJob, future: Future[CompletionOutput], submitted_at: float) -> None:
        result = future.result()
        job.ended_at = self._env.now
        job.is_late = result.finish_reason is FinishReason.DEADLINE
        if result.first_token_s is not None:
            job.first_token_at = submitted_at + result.first_token_s

    def _wake(self) -> None:
        self._work.succeed()
        self._work = self._env.event()


def coarse(num_tokens: int, grain: int) -> int:
    """Return how many tokens of the simulation stand for so many."""
    return max(1, round(num_tokens / grain))
