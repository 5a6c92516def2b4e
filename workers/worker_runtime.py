"""Builds the parts of a worker process around its engine, and starts and stops them.

A runtime serves one model version: its runner or encoder, its tokenizer, its engine, and the threads for leases,
frames, cancellations and watchdogs. Celery is outside: it asks for room, hands over job ids and requests the stop.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from headrace.models.engine.protocol import AnyEngine
from headrace.models.engine.requests import Delta, FinishReason
from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError
from headrace.store.failpoints import failpoint
from headrace.store.jobs.claims import Finish, Unclaimed
from headrace.store.metrics.worker_metrics import Served, WorkerMetrics
from headrace.store.periodic import Periodic
from headrace.store.registry.models import ModelVersion, list_adapters, shadow_name
from headrace.store.settings import Settings
from headrace.store.streams.stream_log import CancelListener
from headrace.store.tracing.tracing import OFF, Tracing
from headrace.workers.celery.adapter_queues import AdapterQueues
from headrace.workers.celery.attempt_events import ReportedRunner
from headrace.workers.celery.fast_lane import FastLane, num_spare
from headrace.workers.celery.postgres_poller import PostgresPoller
from headrace.workers.celery.thread_pool import PUMP_S, SETTLE_S, Drain, Scalar
from headrace.workers.celery.watchdog import EXIT_ENGINE_DEAD, DrainKeeper
from headrace.workers.connections import Connections
from headrace.workers.health import OK, HealthServer, postgres_check
from headrace.workers.live_reporter import LiveReporter, TokenCounts
from headrace.workers.presence import PresenceReporter
from headrace.workers.runs.attempt_spans import AttemptSpans
from headrace.workers.runs.claim_client import ClaimClient
from headrace.workers.runs.engine_admission import EngineAdmission, LoopWaker
from headrace.workers.runs.in_flight import Attempt, AttemptId, InFlightAttempts
from headrace.workers.runs.job_runner import JobRunner
from headrace.workers.runs.leases import LeaseKeeper
from headrace.workers.runs.outcome import Retry
from headrace.workers.runs.stream_publisher import FrameQueue
from headrace.workers.tasks.task_model import EngineSetup, TaskModel, WorkContext

log = structlog.get_logger(__name__)

# How long a job that must run alone waits for a gap before its worker takes no other; then they take turns.
_SUSPECT_PATIENCE_S = 5.0
GIVE_UP_S = 0.75
"""Time for the engine's step and for handing its jobs back. It is shorter than the grace time of a drain."""


@dataclass(frozen=True, slots=True)
class _Sources:
    """The threads that bring jobs and cancellations besides Celery."""

    poller: PostgresPoller
    fast_lane: FastLane
    cancels: CancelListener


class WorkerRuntime:
    """Runs one model's engine and the jobs in it. Parts are constructed in the order in which they need each other."""

    def __init__(
        self,
        settings: Settings,
        model: TaskModel,
        *,
        owner: str,
        max_jobs: int,
        exit_now: Callable[[int], None] = os._exit,
        tracing: Tracing = OFF,
    ) -> None:
        self._model = model
        self._owner = owner
        self._max_slots = settings.max_slots
        self._lease_s = settings.lease_s
        self._max_step_s = settings.max_step_s
        self._exit_now = exit_now
        self._handing_back = threading.Lock()
        self._stopping = threading.Event()
        self._started_at = time.monotonic()
        served = Served(model.version.model, str(model.version.version), model.version.task)
        self.metrics = WorkerMetrics(served, tracing)
        self._tracing = tracing
        self._spans = AttemptSpans(tracing, worker=owner, queue=model.queue, task=served.task)
        self._connections = Connections(settings, owner, model.queue, self.metrics.junk.inc, self._adapter_names)
        self.adapters = self._new_adapter_queues()
        self.frames = FrameQueue(self._connections.publisher, on_gap=self._note_gap)
        self._waker = LoopWaker()
        self.in_flight = InFlightAttempts()
        self._token_counts = TokenCounts(self.in_flight)
        self._watchdog = Periodic("engine-watchdog", self._check_engine, min(1.0, settings.max_step_s / 4))
        self.engine = self._new_engine(settings)
        self.metrics.add_engine(self.engine.stats, self.frames, lambda: self.leases.num_lost)
        self.admission = self._new_admission(max_jobs)
        self.claim_client = self._new_claim_client(self._connections.jobs)
        self.leases = self._new_lease_keeper()
        self.job_runner = self._new_job_runner(settings)
        version = model.version
        self.reported_runner = ReportedRunner(
            self.job_runner, shadow_name(version.task, version.model, version.version)
        )
        self._sources = self._new_sources(settings)
        self.drain = Drain(settings.drain_s)
        self._drain_keeper = self._new_drain_keeper()
        self._presence = self._new_presence()
        self._live = self._new_live_reporter()
        self._health = self._new_health(settings)

    def start(self) -> None:
        """Start every thread; jobs may come from now on."""
        if self.adapters is not None:
            self.adapters.start()
        for part in (
            self._connections.parents,
            self.frames,
            self.engine,
            self.leases,
            self._sources.cancels,
            self._watchdog,
            self._drain_keeper,
            self._sources.poller,
            self._sources.fast_lane,
            self._presence,
            self._live,
            self._health,
        ):
            part.start()

    def stop(self) -> None:
        """Stop every thread, after Celery has stopped. Jobs that still run at the end of the drain are handed back."""
        self._sources.poller.stop(0)
        self._sources.fast_lane.stop()
        self.admission.close()
        while not self.in_flight.wait_empty(PUMP_S) and self.drain.remaining_s > 0:
            pass
        self.hand_back()
        self._watchdog.stop()
        self.engine.stop(1.0)
        self.leases.stop()
        self._sources.cancels.stop()
        self.frames.stop(1.0)
        self._drain_keeper.stop()
        if self.adapters is not None:
            self.adapters.stop()
        self._presence.stop()
        self._live.stop()
        self._health.stop()
        self._connections.close()
        self._tracing.stop()

    def run(self, job_id: str) -> Finish | Retry | Unclaimed | None:
        """Run a job and return its outcome, as ``JobRunner.run``. Raises nothing."""
        return self.job_runner.run(job_id)

    def revoke(self, task_id: str) -> None:
        """Cancel the job of a task that Celery terminates. The id of a task is the id of its job."""
        self.leases.cancel(task_id)

    def end_revoked(self, job_id: str) -> None:
        """End a job that Celery discarded because it was revoked before it ran.

        On another thread, because the caller is the event loop.
        """
        threading.Thread(target=self.job_runner.cancel_queued, args=(job_id,), name="revoked").start()

    def hand_back(self, *, died: bool = False) -> None:
        """Give every running job back to the queue, and wait for outcomes that are being written.

        The engine ends its requests at the next step, and their threads hand the jobs back with their output so far.
        Jobs that do not end in time go back without it. ``died``: the engine has died, perhaps because of one of the
        jobs. A second call waits for the first one.
        """
        with self._handing_back:
            if not self._stopping.is_set():
                # On another thread, because the listener takes a second to end.
                threading.Thread(target=self._sources.cancels.stop, name="stop-listening", daemon=True).start()
            self._stopping.set()
            self.admission.close()
            attempts = self.in_flight.close()
            if died:
                # Its requests fail, so that their jobs are charged: one that stops the engine must not do so for ever.
                self.engine.stop(GIVE_UP_S)
            for attempt in attempts:
                self.engine.cancel(attempt.id, FinishReason.HANDED_BACK)
            failpoint("drain.midway")
            self.in_flight.wait_empty(GIVE_UP_S)
            rest = self.in_flight.take_rest()
            self._release(rest, died=died)
            self.in_flight.wait_empty(SETTLE_S)
            if attempts:
                log.info("handed_back", num_jobs=len(attempts), num_without_progress=len(rest), charged=died)

    def hand_on(self) -> None:
        """Give every job in the engine back to the queue, with its output so far, at the next step."""
        attempts = [
            attempt for job_id in self.in_flight.epochs() if (attempt := self.in_flight.get(job_id)) is not None
        ]
        for attempt in attempts:
            self.engine.cancel(attempt.id, FinishReason.HANDED_BACK)
        log.info("handed_on", num_jobs=len(attempts))

    def _note_gap(self, attempt_id: AttemptId, per_token_s: float) -> None:
        attempt = self.in_flight.get(attempt_id.job_id)
        if attempt is not None:
            self.metrics.times[attempt.claim.class_rank].inter_token.observe(per_token_s)

    def _release(self, attempts: list[Attempt], *, died: bool) -> None:
        try:
            released = self.claim_client.release(attempts, charge=died, crashed=died)
            code = "worker_lost" if died else "handed_back"
            self.metrics.count_released(code, len(released))
            self._spans.released([one for one in attempts if one.job_id in released], code, time.monotonic())
        except HeadraceError as error:
            log.error("hand_back_failed", num_jobs=len(attempts), error=error.message)

    def engine_info(self) -> Mapping[str, Scalar]:
        """Return the engine's statistics for Flower's Pool tab."""
        stats = self.engine.stats()
        version = self._model.version
        seconds = max(1e-3, time.monotonic() - self._started_at)
        return {
            "model version": self._model.queue,
            "model digest": version.digest[:12],
            "inference server": self._model.engine_description or "",
            "engine steps": stats.steps,
            "requests running": stats.running,
            "requests waiting": stats.waiting,
            "KV blocks free": stats.free_blocks,
            "KV blocks total": stats.total_blocks,
            "slots": self._max_slots,
            "slots beside them, for jobs that go ahead": stats.max_slots - self._max_slots,
            "batch mean": round(stats.mean_batch, 2),
            "batch peak": stats.peak_batch,
            "prompt tokens": stats.prompt_tokens,
            "output tokens": stats.output_tokens,
            "output tokens per second since start": round(stats.output_tokens / seconds, 1),
            "completed": stats.completed,
            "failed": stats.failed,
            "preempted": stats.preempted,
            "prompt tokens found in the KV cache": stats.cached_tokens,
            "KV blocks evicted": stats.evicted_blocks,
            "tokens guessed": stats.drafted_tokens,
            "guesses that were right": stats.accepted_tokens,
            "frames published": self.frames.num_published,
            "frames dropped": self.frames.num_dropped,
            "leases lost": self.leases.num_lost,
        }

    def _check_engine(self) -> None:
        if not self.engine.is_healthy(self._max_step_s):
            log.critical("engine_dead", max_step_s=self._max_step_s)
            self._fail()

    def _fail(self) -> None:
        """End the process because its engine is dead. A job that was in it may run in isolation next time."""
        self._watchdog.stop()
        self.leases.stop()
        self.hand_back(died=True)
        self._tracing.stop()
        self._exit_now(EXIT_ENGINE_DEAD)

    def _adapter_names(self) -> tuple[str, ...]:
        return () if self.adapters is None else self.adapters.names()

    def _new_adapter_queues(self) -> AdapterQueues | None:
        if not self._model.version.spec.has_sampling:
            return None
        find = partial(list_adapters, self._connections.health, self._model.version)
        return AdapterQueues(find, self._check_adapter)

    def _check_adapter(self, version: ModelVersion) -> None:
        """Raise ModelLoadError unless the files of an adapter are here. A version with these weights needs none."""
        if not version.shares_weights:
            self._model.check_adapter(version)

    def _new_engine(self, settings: Settings) -> AnyEngine:
        return self._model.new_engine(
            EngineSetup(
                settings,
                settings.max_slots + num_spare(settings.max_slots),
                on_deltas=self._put_deltas,
                on_room=self._waker.room_made,
                on_failed=lambda _error: self._watchdog.wake(),
            )
        )

    def _put_deltas(self, deltas: Sequence[Delta]) -> None:
        self.frames.put_deltas(deltas)
        self._token_counts.count(deltas)

    def _new_admission(self, max_jobs: int) -> EngineAdmission:
        return EngineAdmission(
            self.engine,
            max_jobs=max_jobs,
            max_slots=self._max_slots,
            num_spare=num_spare(self._max_slots),
            waker=self._waker,
        )

    def _new_presence(self) -> PresenceReporter:
        return PresenceReporter(
            self._connections.health,
            self._model.queue,
            lambda: self.engine.capacity_tokens,
            is_taking=self._is_taking,
            is_able=lambda: self.engine.why_not is None,
            adapters=self._adapter_names,
            slots=self._max_slots,
        )

    def _new_live_reporter(self) -> LiveReporter:
        return LiveReporter(
            self._connections.live,
            self.engine,
            self.in_flight,
            self._token_counts,
            owner=self._owner,
            queue=self._model.queue,
            slots=self._max_slots,
            lease_s=self._lease_s,
            engine_description=lambda: self._model.engine_description,
            is_reserved=lambda: self.admission.is_reserved,
            progress_of=self.frames.progress_of,
        )

    def _is_taking(self) -> bool:
        return not (self._stopping.is_set() or self.drain.requested.is_set())

    def _new_health(self, settings: Settings) -> HealthServer:
        def engine() -> str:
            if not self.engine.is_healthy(settings.max_step_s):
                return f"the engine's thread is dead or has made no step for {settings.max_step_s:g} s"
            return self.engine.why_not or OK

        def taking() -> str:
            return OK if self._is_taking() else "the worker is stopping"

        checks = {"engine": engine, "taking": taking, "postgres": postgres_check(self._connections.health)}
        return HealthServer(settings.health_host, settings.worker_metrics_port, self.metrics.render, checks)

    def _new_drain_keeper(self) -> DrainKeeper:
        return DrainKeeper(
            self.drain,
            wake=self._waker.wake,
            is_idle=lambda: not len(self.in_flight) and not self.admission.num_taken,
            hand_back=self.hand_back,
            exit_now=self._exit_now,
        )

    def _new_claim_client(self, db: Database) -> ClaimClient:
        return ClaimClient(
            db,
            owner=self._owner,
            queue=self._model.queue,
            lease_s=self._lease_s,
            stopping=self._stopping,
            capacity=lambda: self.engine.capacity_tokens,
            engine=lambda: self._model.engine_description,
            adapters=self._adapter_names,
            observer=self.metrics.commits.observer,
            parents=self._connections.parents,
        )

    def _new_lease_keeper(self) -> LeaseKeeper:
        claim_client = self._new_claim_client(self._connections.leases)
        return LeaseKeeper(claim_client, self.in_flight, self.engine, lease_s=self._lease_s)

    def _new_job_runner(self, settings: Settings) -> JobRunner:
        context = WorkContext(
            self.in_flight,
            self.admission,
            self.frames,
            self._connections.fenced_logs,
            self._connections.jobs,
            self.metrics,
            self._spans,
            settings,
        )
        return JobRunner(
            claim_client=self.claim_client,
            in_flight=self.in_flight,
            work=self._model.new_work(self.engine, context),
            parents=self._connections.parents,
            admission=self.admission,
            frames=self.frames,
            lease_s=self._lease_s,
            metrics=self.metrics,
            spans=self._spans,
        )

    def _new_sources(self, settings: Settings) -> _Sources:
        poller = PostgresPoller(
            self.claim_client,
            self.admission,
            self.reported_runner,
            hand_on=self.hand_on,
            after_s=settings.direct_after_s,
            patience_s=_SUSPECT_PATIENCE_S,
        )
        fast_lane = FastLane(self._connections.fast_lane_hints, self.admission, self.reported_runner)
        return _Sources(poller, fast_lane, CancelListener(settings.redis_url, self.leases.cancel))
