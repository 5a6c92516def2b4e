"""The engine in this process and everything that stands around it, wired together.

One host is one model version: its runner or encoder, its tokenizer, its engine thread, and the threads for leases,
frames, cancels and watching. Celery is outside: it asks for credit, hands over job ids and tells when to stop.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry

from models.engine.encoder_engine import EncodeConfig, EncodeEngine
from models.engine.llm_engine import EngineConfig, LLMEngine
from models.engine.requests import FinishReason
from models.engine.runner import Encoder, Runner
from prompts.detokenizer import Detokenizer
from prompts.tasks.embed import Embedder
from prompts.tokenizer import Tokenizer
from store.db.database import Database
from store.errors import HeadraceError
from store.failpoints import failpoint
from store.jobs.claims import Finish
from store.redis.celery_queue import AheadHints
from store.redis.connection import connect
from store.registry.models import ModelVersion, queue_name
from store.settings import Settings, open_vault
from store.streams.fencing import SealedLogs
from store.streams.stream_log import CancelListener, StreamPublisher
from workers.celery.fast_lane import AheadTaker, num_spare
from workers.celery.postgres_poller import DirectClaims
from workers.celery.thread_pool import PUMP_S, SETTLE_S, Drain, Scalar
from workers.celery.watchdog import EXIT_ENGINE_DEAD, DrainKeeper, EngineWatchdog
from workers.health import OK, HealthServer, postgres_check
from workers.metrics import Counters, EngineCollector
from workers.presence import Presence
from workers.runs.checkpoint_recovery import SEAL_TIMEOUT_S, Resumer
from workers.runs.claim_client import Ledger
from workers.runs.engine_admission import Admission
from workers.runs.in_flight import Attempt, HeldJobs
from workers.runs.job_runner import Executor, Work
from workers.runs.leases import LeaseKeeper
from workers.runs.outcome import Retry
from workers.runs.output_policy import PolicyBook
from workers.runs.stream_publisher import FrameQueue
from workers.tasks.embed import Encoding
from workers.tasks.generate import Generating

log = structlog.get_logger(__name__)

GIVE_UP_S = 0.75
"""For the engine's step and the statements that hand its jobs back; it must leave time within the grace of a drain."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A version with what it takes to run it."""

    version: ModelVersion
    runner: Runner
    tokenizer: Tokenizer

    @property
    def queue(self) -> str:
        """The queue of this version."""
        return queue_name(self.version.model, self.version.version)


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """As ``LoadedModel``, of a version that makes vectors."""

    version: ModelVersion
    encoder: Encoder
    tokenizer: Tokenizer
    embedder: Embedder

    @property
    def queue(self) -> str:
        """The queue of this version."""
        return queue_name(self.version.model, self.version.version)


Loaded = LoadedModel | LoadedEncoder


class Host:
    """Runs one model's engine and the jobs that wait on it."""

    def __init__(
        self,
        settings: Settings,
        model: Loaded,
        *,
        owner: str,
        max_jobs: int,
        exit_now: Callable[[int], None] = os._exit,
    ) -> None:
        self._model = model
        self._max_slots = settings.max_slots
        self._exit_now = exit_now
        self._handing_back = threading.Lock()
        self._stopping = threading.Event()
        self._started_at = time.monotonic()
        # Claims, finishes, releases and direct claims each run one statement at a time; leases must never wait behind.
        vault = open_vault(settings)
        self._db = Database(
            settings.database_url, pool_size=5, application_name=f"headrace worker {owner}", vault=vault
        )
        self._lease_db = Database(
            settings.database_url,
            pool_size=1,
            application_name=f"headrace leases {owner}",
            vault=vault,
            # Shorter than the time between two renewals, so that a table that is locked costs one of them at most.
            lock_timeout_s=settings.lease_s / 4,
        )
        self._redis = connect(settings.redis_url)
        self._sealed_logs = SealedLogs(
            settings.redis_url, ttl_s=settings.stream_ttl_s, timeout_s=SEAL_TIMEOUT_S, vault=vault
        )
        publisher = StreamPublisher(
            self._redis, maxlen=settings.stream_max_frames, ttl_s=settings.stream_ttl_s, vault=vault
        )
        self.frames = FrameQueue(publisher)
        self.engine = self._new_engine(settings)
        self.held = HeldJobs()
        self.admission = Admission(
            self.engine,
            max_jobs=max_jobs,
            max_slots=settings.max_slots,
            num_spare=num_spare(settings.max_slots),
        )
        self.drain = Drain(settings.drain_s)
        self._registry = CollectorRegistry()
        self.counters = Counters(self._registry)
        self._registry.register(EngineCollector(self.engine.stats, self.frames))
        self._health_db = Database(settings.database_url, pool_size=2, application_name=f"headrace health {owner}")
        self._health = self._new_health(settings)
        # An encoder holds any input of its context window.
        self._capacity = self.engine.capacity_tokens if isinstance(self.engine, LLMEngine) else None
        self._presence = Presence(self._health_db, self._model.queue, self._capacity, is_taking=self._is_taking)
        self._ledger = self._new_ledger(self._db, owner, settings.lease_s)
        self.leases = LeaseKeeper(
            self._new_ledger(self._lease_db, owner, settings.lease_s), self.held, self.engine, lease_s=settings.lease_s
        )
        self.executor = self._new_executor(settings.lease_s)
        self._direct = DirectClaims(
            self._ledger,
            self.admission,
            self.executor,
            hand_on=self._hand_on,
            after_s=settings.direct_after_s,
            patience_s=settings.suspect_patience_s,
        )
        self._ahead_hints = AheadHints(settings.redis_url, self._model.queue, self.counters.junk.inc)
        self._ahead = AheadTaker(self._ahead_hints, self.admission, self.executor)
        self._cancels = CancelListener(settings.redis_url, self.leases.cancel)
        self._watchdog = EngineWatchdog(self.engine, max_step_s=settings.max_step_s, on_dead=self._fail)
        self._drain_keeper = self._new_drain_keeper()

    def start(self) -> None:
        """Start every thread; jobs may come from now on."""
        self.engine.on_room = self.admission.made_room
        self.engine.on_failed = lambda _error: self._watchdog.look()
        for part in (
            self.frames,
            self.engine,
            self.leases,
            self._cancels,
            self._watchdog,
            self._drain_keeper,
            self._direct,
            self._ahead,
            self._presence,
        ):
            part.start()
        self._health.start()

    def stop(self) -> None:
        """Stop every thread, after Celery has; what still runs when the drain's time is over is handed back first."""
        self._direct.stop()
        self._ahead.stop()
        self.admission.close()
        while not self.held.wait_empty(PUMP_S) and self.drain.remaining_s > 0:
            pass
        self.hand_back()
        self._watchdog.stop()
        self.engine.stop(1.0)
        self.leases.stop()
        self._cancels.stop()
        self.frames.stop(1.0)
        self._drain_keeper.stop()
        self._db.close()
        self._lease_db.close()
        self._presence.stop()
        self._health.stop()
        self._health_db.close()
        self._redis.close()
        self._ahead_hints.close()

    def run(self, job_id: str) -> Finish | Retry | None:
        """Run a job and return what was stored of it, as ``Executor.run``. Raises nothing."""
        return self.executor.run(job_id)

    def revoke(self, task_id: str) -> None:
        """Cancel the job of a task that Celery was told to terminate; a task's id is its job's."""
        self.leases.cancel(task_id)

    def end_revoked(self, job_id: str) -> None:
        """End a job that Celery discarded because it was revoked before it ran; on a thread, for the caller is the
        event loop."""
        threading.Thread(target=self.executor.cancel_queued, args=(job_id,), name="revoked").start()

    def hand_back(self, *, died: bool = False) -> None:
        """Give every job that still runs back to the queue and wait for outcomes that are being written.

        The engine gives up its requests at the next step, and their threads hand them back with what was emitted; those
        that it keeps for too long go back without. ``died``: the engine has; one of the jobs may be why. Called again
        it waits for the first call and finds nothing left to do.
        """
        with self._handing_back:
            if not self._stopping.is_set():
                # Nothing is left to be cancelled; the listener takes a second to end, which need not be waited for.
                threading.Thread(target=self._cancels.stop, name="stop-listening", daemon=True).start()
            self._stopping.set()
            self.admission.close()
            attempts = self.held.close()
            for attempt in attempts:
                self.engine.cancel(attempt.key, FinishReason.HANDED_BACK)
            failpoint("drain.midway")
            self.held.wait_empty(GIVE_UP_S)
            rest = self.held.take_rest()
            self._release(rest, died=died)
            self.held.wait_empty(SETTLE_S)
            if attempts:
                log.info("handed_back", num_jobs=len(attempts), num_without_progress=len(rest), charged=died)

    def _hand_on(self) -> None:
        """Let every job in the engine go back to the queue with what it has, at the next step."""
        attempts = [attempt for job_id in self.held.epochs() if (attempt := self.held.get(job_id)) is not None]
        for attempt in attempts:
            self.engine.cancel(attempt.key, FinishReason.HANDED_BACK)
        log.info("handed_on", num_jobs=len(attempts))

    def _release(self, attempts: list[Attempt], *, died: bool) -> None:
        try:
            self.counters.released.inc(self._ledger.release(attempts, charge=died, crashed=died))
        except HeadraceError as error:
            log.error("hand_back_failed", num_jobs=len(attempts), error=error.message)

    def engine_info(self) -> Mapping[str, Scalar]:
        """Return the engine's statistics for Flower's Pool tab."""
        stats = self.engine.stats()
        version = self._model.version
        return {
            "model version": self._model.queue,
            "model digest": version.digest[:12],
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
            "output tokens per second since start": round(
                stats.output_tokens / max(1e-3, time.monotonic() - self._started_at), 1
            ),
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

    def _fail(self) -> None:
        """End the process because its engine is dead: every job that was in it runs alone next time."""
        self._watchdog.stop()
        self.leases.stop()
        self.hand_back(died=True)
        self._exit_now(EXIT_ENGINE_DEAD)

    def _new_engine(self, settings: Settings) -> LLMEngine | EncodeEngine:
        model, num_places = self._model, settings.max_slots + num_spare(settings.max_slots)
        if isinstance(model, LoadedEncoder):
            return EncodeEngine(model.encoder, EncodeConfig(num_places, settings.encode_tokens))
        return LLMEngine(
            model.runner,
            lambda: Detokenizer(model.tokenizer),
            EngineConfig(
                num_places,
                settings.step_tokens,
                speculation=settings.speculation == "auto",
                stretch=settings.stretch,
                deltas_per_s=settings.stream_deltas_per_s,
            ),
            on_deltas=self.frames.put_deltas,
        )

    def _is_taking(self) -> bool:
        return not (self._stopping.is_set() or self.drain.requested.is_set())

    def _new_health(self, settings: Settings) -> HealthServer:
        def engine() -> str:
            healthy = self.engine.is_healthy(settings.max_step_s)
            return OK if healthy else f"the engine's thread is dead or has made no step for {settings.max_step_s:g} s"

        def taking() -> str:
            return OK if self._is_taking() else "the worker is stopping"

        checks = {"engine": engine, "taking": taking, "postgres": postgres_check(self._health_db)}
        return HealthServer(settings.health_host, settings.worker_metrics_port, self._registry, checks)

    def _new_drain_keeper(self) -> DrainKeeper:
        return DrainKeeper(
            self.drain,
            # Looked up when it is called: Celery's side is put there after this.
            wake=lambda: self.admission.wake(),
            is_idle=lambda: not len(self.held) and not self.admission.in_flight,
            hand_back=self.hand_back,
            exit_now=self._exit_now,
        )

    def _new_ledger(self, db: Database, owner: str, lease_s: float) -> Ledger:
        return Ledger(
            db,
            owner=owner,
            queue=self._model.queue,
            lease_s=lease_s,
            stopping=self._stopping,
            capacity=self._capacity,
        )

    def _new_executor(self, lease_s: float) -> Executor:
        return Executor(
            ledger=self._ledger,
            held=self.held,
            work=self._new_work(),
            admission=self.admission,
            frames=self.frames,
            lease_s=lease_s,
            counters=self.counters,
        )

    def _new_work(self) -> Work:
        match self._model, self.engine:
            case LoadedEncoder() as model, EncodeEngine() as engine:
                return Encoding(
                    held=self.held,
                    engine=engine,
                    admission=self.admission,
                    frames=self.frames,
                    tokenizer=model.tokenizer,
                    embedder=model.embedder,
                )
            case LoadedModel() as model, LLMEngine() as engine:
                return Generating(
                    held=self.held,
                    engine=engine,
                    admission=self.admission,
                    frames=self.frames,
                    resumer=Resumer(self._sealed_logs),
                    tokenizer=model.tokenizer,
                    policies=PolicyBook(self._db),
                    context_window=min(model.version.context_window, model.runner.context_window),
                )
            case _:
                raise AssertionError("an engine is made for the model's kind")
