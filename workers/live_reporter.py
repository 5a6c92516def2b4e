"""Tells Redis every second what this worker holds, and every few seconds what it has done, for people who watch."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from headrace.models.engine.protocol import AnyEngine
from headrace.models.engine.requests import Delta
from headrace.store.periodic import Periodic
from headrace.store.redis.live_workers import (
    KEEP_S,
    PERIOD_S,
    TICK_S,
    SnapshotJob,
    SnapshotPublisher,
    WorkerSnapshot,
    WorkerTick,
)
from headrace.workers.runs.in_flight import Attempt, AttemptId, ChoiceId, InFlightAttempts

_MOST_FIRST_TOKENS = 200
"""First tokens of one tenant that a tick has; more are left out."""


class TokenCounts:
    """Counts the tokens of each attempt in flight, and those of each tenant since the last tick."""

    def __init__(self, in_flight: InFlightAttempts, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._in_flight = in_flight
        self._clock = clock
        self._lock = threading.Lock()
        self._attempts: dict[AttemptId, tuple[str, int]] = {}
        self._tokens: defaultdict[str, int] = defaultdict(int)
        self._first_token_ms: defaultdict[str, list[float]] = defaultdict(list)
        self._counted_at = clock()

    def count(self, deltas: Sequence[Delta]) -> None:
        """Count the tokens of one engine step. A delta without token ids, of an inference server, counts as one.

        The choices of a job count together.
        """
        with self._lock:
            self._counted_at = self._clock()
            for delta in deltas:
                attempt_id = AttemptId(*cast(AttemptId | ChoiceId, delta.request_id)[:2])
                tenant_id, num_tokens = self._attempts.get(attempt_id) or self._first(attempt_id, delta.seq)
                num_new = len(delta.token_ids) or 1
                self._attempts[attempt_id] = (tenant_id, num_tokens + num_new)
                self._tokens[tenant_id] += num_new

    @property
    def counted_at(self) -> float:
        """When the last token came; at first, the start."""
        with self._lock:
            return self._counted_at

    def tokens_of(self, attempt_id: AttemptId) -> int:
        """Return the tokens that the attempt has generated."""
        with self._lock:
            return self._attempts.get(attempt_id, ("", 0))[1]

    def keep(self, attempt_ids: set[AttemptId]) -> None:
        """Forget the attempts that are over."""
        with self._lock:
            for attempt_id in self._attempts.keys() - attempt_ids:
                del self._attempts[attempt_id]

    def take(self) -> tuple[dict[str, int], dict[str, list[float]]]:
        """Return the tokens and the times to the first token by tenant since the last call."""
        with self._lock:
            taken = dict(self._tokens), dict(self._first_token_ms)
            self._tokens.clear()
            self._first_token_ms.clear()
        return taken

    def _first(self, attempt_id: AttemptId, seq: int) -> tuple[str, int]:
        """Note the time to the first token of a job. An attempt that continues another one has a later ``seq``."""
        attempt = self._in_flight.get(attempt_id.job_id)
        if attempt is None:
            return "", 0
        times = self._first_token_ms[attempt.claim.tenant_id]
        if seq == 1 and len(times) < _MOST_FIRST_TOKENS:
            times.append(round((attempt.claim.queued_s + self._clock() - attempt.claimed_at) * 1000, 1))
        return attempt.claim.tenant_id, 0


class LiveReporter(Periodic):
    """Publishes the snapshots and ticks of one worker from its own thread. Without Redis it tries again."""

    def __init__(
        self,
        publisher: SnapshotPublisher,
        engine: AnyEngine,
        in_flight: InFlightAttempts,
        counts: TokenCounts,
        *,
        owner: str,
        queue: str,
        slots: int,
        lease_s: float,
        engine_description: Callable[[], str | None],
        is_reserved: Callable[[], bool] = lambda: False,
        progress_of: Callable[[AttemptId], float | None] = lambda _attempt_id: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._publisher = publisher
        self._engine = engine
        self._in_flight = in_flight
        self._counts = counts
        self._owner = owner
        self._queue = queue
        self._slots = slots
        self._lease_s = lease_s
        self._engine_description = engine_description
        self._is_reserved = is_reserved
        self._progress_of = progress_of
        self._clock = clock
        self._running: list[int] = []
        self._idle_at = clock()
        self._ticked_at = clock()
        super().__init__("live", self.report, PERIOD_S, at_end=partial(publisher.withdraw, owner))

    def report(self) -> None:
        attempts = self._in_flight.all()
        self._counts.keep({attempt.id for attempt in attempts})
        stats = self._engine.stats()
        self._running.append(stats.running)
        now = self._clock()
        jobs = [self._job(attempt, now) for attempt in attempts]
        if not stats.running:
            self._idle_at = now
        renewed = [self._in_flight.renewed_at(attempt) for attempt in attempts]
        snapshot = WorkerSnapshot(
            id=self._owner,
            queue=self._queue,
            engine=self._engine_description(),
            slots=self._slots,
            running=stats.running,
            waiting=stats.waiting,
            free_blocks=stats.free_blocks,
            total_blocks=stats.total_blocks,
            lease_s=self._lease_s,
            lease_age_s=round(now - min(renewed), 3) if renewed else None,
            jobs=jobs,
            quiet_s=self._quiet_s(jobs, now) if stats.running else None,
            kept_s=KEEP_S,
            is_reserved=self._is_reserved(),
        )
        self._publisher.publish(snapshot, self._tick(now))

    def _quiet_s(self, jobs: Sequence[SnapshotJob], now: float) -> float | None:
        if not any(job.max_tokens for job in jobs):
            return None
        return round(now - max(self._counts.counted_at, self._idle_at), 3)

    def _tick(self, now: float) -> WorkerTick | None:
        if now - self._ticked_at < TICK_S:
            return None
        tokens, first_token_ms = self._counts.take()
        running = sum(self._running) / len(self._running)
        self._running.clear()
        self._ticked_at = now
        return WorkerTick(
            worker=self._owner,
            queue=self._queue,
            tokens=tokens,
            first_token_ms=first_token_ms,
            running=running,
            slots=self._slots,
        )

    def _job(self, attempt: Attempt, now: float) -> SnapshotJob:
        claim = attempt.claim
        return SnapshotJob(
            id=claim.job_id,
            tenant_id=claim.tenant_id,
            class_rank=claim.class_rank,
            attempt=claim.attempt,
            age_s=round(now - attempt.claimed_at, 3),
            input_tokens=claim.input_tokens,
            output_tokens=self._counts.tokens_of(attempt.id),
            max_tokens=claim.payload.get("sampling", {}).get("max_tokens") or 0,
            progress=self._progress_of(attempt.id),
        )
