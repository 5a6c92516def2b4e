"""The batch keeper: a duty that validates input files, submits their lines as jobs and writes the result files.

One API process leads and runs all batches; the others stand by (``producer_api.api_keeper``). In each turn the
keeper takes one batch of each tenant (``batch_round_robin``), chooses its next step (``next_step``, pure) and runs a
small piece of that step, so no tenant blocks another. After each turn it rests three times as long as it worked, so API
requests are not delayed. Progress of the two long steps (validation and writing results) is only in memory: a new
leader starts them again. Each change that must happen exactly once is one transaction in ``batch_steps``.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from itertools import islice

import structlog

from headrace.features.batches import batch_steps
from headrace.features.batches.batch_input import RawLine, first_bytes, read_lines
from headrace.features.batches.batch_lines import LineReader
from headrace.features.batches.batch_results import publish
from headrace.features.batches.batch_round_robin import WAITING_S, BatchRoundRobin
from headrace.features.batches.batch_steps import BatchProgress, LinesOverLimit, LiveBatch, ParsedLine
from headrace.features.batches.batch_validation import validate
from headrace.features.batches.batches import Batch
from headrace.features.files.blob_storage import Blobs, open_blobs
from headrace.features.flows.flow_jobs import FlowSubmissions
from headrace.features.flows.pipeline_lines import PipelineLines
from headrace.producer_api.api_part import ApiWork
from headrace.producer_api.jobs.cancel import announce_cancelled
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import internal_error
from headrace.producer_api.server.request_spans import record_accept
from headrace.producer_api.submission.queue_limits import QueueLimits
from headrace.producer_api.submission.submit import Submissions
from headrace.prompts.sandbox.turns import on_behalf_of
from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError, InvalidRequest, StatementTimeout, Unavailable
from headrace.store.keeper import Duty
from headrace.store.schema.batch_states import BatchStatus
from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import Principal
from headrace.store.tracing.tracing import OFF, Tracing, now_ns, read_traceparent

_log = structlog.get_logger("headrace.producer_api")

TURN_S = 0.02
"""Shortest time between two turns with work. A turn that ends earlier runs another round."""
IDLE_S = 1.0
"""Time between polls of the database while there are no batches."""
SLEEP_FACTOR = 3.0
"""After each turn the thread sleeps this multiple of the turn's CPU time."""

MAX_LINES_PER_TURN = 256
MAX_BYTES_PER_TURN = 1 << 20
MAX_TAKING_S = 0.5
"""No further line is taken in a turn after this: a grammar, a policy or a template may take a second or two."""

MIN_UNDER_WAY = 8
MAX_LONG_TASKS = 4
"""Most batches of one tenant in validation or result writing at a time: each holds an open file and some memory."""

OnCancelled = Callable[[list[str], list[str]], None]
"""Callback with the ids of cancelled jobs: those still running on a worker, and those that have ended."""


class BatchStep(Enum):
    """The next action for a batch."""

    VALIDATE = auto()
    TAKE_LINES = auto()
    WAIT = auto()
    FINALIZE = auto()
    CANCEL_JOBS = auto()
    PUBLISH = auto()


def next_step(progress: BatchProgress) -> BatchStep:
    """Return the next step. After the completion window no more lines are submitted."""
    batch = progress.batch
    match batch.status:
        case BatchStatus.VALIDATING:
            return BatchStep.PUBLISH if progress.remaining_s <= 0 else BatchStep.VALIDATE
        case BatchStatus.IN_PROGRESS:
            num_taken = batch.num_completed + batch.num_failed + progress.num_unfinished
            if num_taken < batch.num_total and progress.remaining_s > 0:
                return BatchStep.WAIT if progress.is_early else BatchStep.TAKE_LINES
            return BatchStep.WAIT if progress.num_unfinished else BatchStep.FINALIZE
        case BatchStatus.CANCELLING:
            return BatchStep.CANCEL_JOBS if progress.num_unfinished else BatchStep.PUBLISH
        case BatchStatus.FINALIZING:
            return BatchStep.PUBLISH
        case _:
            return BatchStep.WAIT


def num_to_take(num_unfinished: int, num_live: int, num_tenants: int, most_under_way: int) -> int:
    """Return how many lines a batch may submit now.

    ``most_under_way`` is shared equally between tenants, and a tenant's share between its ``num_live`` batches. A batch
    with no running lines can always submit at least one.
    """
    of_tenant = max(MIN_UNDER_WAY, most_under_way // max(1, num_tenants))
    share = max(1, of_tenant // max(1, num_live))
    return max(0, min(MAX_LINES_PER_TURN, share - num_unfinished))


@dataclass(frozen=True, slots=True)
class _LongTask:
    """A long step of a batch, as a generator that pauses after each piece."""

    tenant_id: str
    step: BatchStep
    pieces: Generator[None]


class BatchKeeper(ApiWork):
    """The duty. A route calls ``wake`` after it has stored a batch."""

    def __init__(
        self,
        settings: Settings,
        db: Database,
        blobs: Blobs,
        *,
        submissions: Submissions,
        pipelines: PipelineLines,
        queue_limits: QueueLimits,
        on_cancelled: OnCancelled,
        tracing: Tracing = OFF,
    ) -> None:
        self._settings = settings
        self._blobs = blobs
        self._queue_limits = queue_limits
        self._on_cancelled = on_cancelled
        self._db = db
        self._lines = LineReader(settings, self._db, submissions, pipelines, tracing)
        self._tracing = tracing
        self._long_tasks: dict[str, _LongTask] = {}
        self._round_robin = BatchRoundRobin()
        self._duty = Duty("keep_batches", IDLE_S, self._keep, begin=self._forget_progress)
        self.duties = ((self._duty,),)

    def wake(self) -> None:
        """Start the next turn immediately."""
        self._duty.wake()

    def stop(self) -> None:
        """Stop the long tasks but one that still runs."""
        with suppress(ValueError):
            self._forget_progress()

    def _keep(self) -> None:
        """Run a turn, and set the pause after it."""
        began_s = time.thread_time()
        pause_s = self._turn()
        # CPU time, not wall time: a wait for Postgres does not delay requests.
        self._duty.period_s = max(pause_s, SLEEP_FACTOR * (time.thread_time() - began_s))

    def _turn(self) -> float:
        """Run one piece for at least one batch of each tenant; return the shortest useful pause in seconds."""
        found = batch_steps.list_live(self._db)
        self._round_robin.keep(found)
        for batch_id in self._long_tasks.keys() - {batch.id for batch in found}:
            self._stop_task(batch_id)
        ends_at = time.monotonic() + TURN_S
        has_worked = False
        while batches := self._round_robin.round():
            for batch in batches:
                has_worked |= self._advance(batch)
            if time.monotonic() >= ends_at:
                break
        if has_worked:
            return TURN_S
        return WAITING_S if found else IDLE_S

    def _advance(self, batch: LiveBatch) -> bool:
        """Run the next piece for a batch; return False if there was none or it failed."""
        try:
            progress = batch_steps.count_ended_lines(self._db, batch.tenant_id, batch.id)
            if self._do(next_step(progress), progress) is not BatchStep.WAIT:
                self._round_robin.worked(batch)
                return True
            self._round_robin.waits(batch)
        except Unavailable as error:
            if error.code == "database_unavailable" and not isinstance(error, StatementTimeout):
                raise
            self._fail(batch, error)
        except HeadraceError as error:
            self._fail(batch, error)
        except Exception as defect:  # noqa: BLE001 - other batches continue; this one is retried until it expires
            internal_error(defect)
            self._round_robin.failed(batch)
        return False

    def _fail(self, batch: LiveBatch, error: HeadraceError) -> None:
        _log.warning("batch_waits", batch_id=batch.id, reason=error.message)
        self._round_robin.failed(batch)

    def _do(self, step: BatchStep, progress: BatchProgress) -> BatchStep:
        """Run a piece of a step; return WAIT if there was nothing to do."""
        batch = progress.batch
        match step:
            case BatchStep.VALIDATE | BatchStep.PUBLISH:
                return step if self._run_piece(step, batch) else BatchStep.WAIT
            case BatchStep.TAKE_LINES:
                return step if self._take_lines(progress) else BatchStep.WAIT
            case BatchStep.FINALIZE:
                batch_steps.finalize(self._db, batch.tenant_id, batch.id)
            case BatchStep.CANCEL_JOBS:
                running, ended = batch_steps.cancel_jobs(self._db, batch.tenant_id, batch.id)
                self._on_cancelled(running, ended)
                return step if running or ended else BatchStep.WAIT
            case BatchStep.WAIT:
                pass
        return step

    def _run_piece(self, step: BatchStep, batch: Batch) -> bool:
        """Run the next piece of a long step; stop an unfinished task of another step. False: the limit is reached."""
        work = self._long_tasks.get(batch.id)
        if work is not None and work.step is not step:
            self._stop_task(batch.id)
            work = None
        if work is None:
            if sum(each.tenant_id == batch.tenant_id for each in self._long_tasks.values()) >= MAX_LONG_TASKS:
                return False
            work = self._long_tasks[batch.id] = _LongTask(batch.tenant_id, step, self._begin(step, batch))
        try:
            next(work.pieces)
        except StopIteration:
            self._long_tasks.pop(batch.id)
        except BaseException:
            self._long_tasks.pop(batch.id)
            raise
        return True

    def _begin(self, step: BatchStep, batch: Batch) -> Generator[None]:
        if step is BatchStep.VALIDATE:
            return validate(self._db, self._blobs, self._lines, self._settings, batch)
        return publish(self._db, self._blobs, self._settings, batch)

    def _take_lines(self, progress: BatchProgress) -> int:
        """Submit the next lines as jobs, within the limits; return their number."""
        batch, turns = progress.batch, self._round_robin
        num_live = turns.num_live(batch.tenant_id)
        # A worker that has as many lines queued as it has slots never waits for the keeper.
        most_under_way = max(self._settings.batch_lines_under_way, 2 * progress.num_slots)
        most = num_to_take(progress.num_unfinished, num_live, turns.num_tenants, most_under_way)
        most = min(most, self._queue_limits.slack(batch.tenant_id))
        if most <= 0 or batch.input_digest is None:
            return 0
        with self._blobs.open(batch.input_digest) as content:
            found = read_lines(content, self._settings.max_body_bytes, number=batch.next_line, offset=batch.next_offset)
            raw = list(first_bytes(islice(found, most), MAX_BYTES_PER_TURN))
        if not raw:
            return 0
        owner = self._lines.owner(batch)
        start_ns = now_ns()
        taken = self._taken(batch, owner, raw, progress.remaining_s)
        num_stored = self._store(batch, raw[: len(taken)], taken)
        link = read_traceparent(batch.traceparent)
        for line in taken[:num_stored]:
            record_accept(self._tracing, line.job, start_ns, batch_id=batch.id, link=link)
        return num_stored

    def _taken(self, batch: Batch, owner: Principal, raw: Sequence[RawLine], remaining_s: float) -> list[ParsedLine]:
        """Return the first line and those after it that are read within ``MAX_TAKING_S``."""
        ends_at = time.monotonic() + MAX_TAKING_S
        taken: list[ParsedLine] = []
        with on_behalf_of(batch.tenant_id):
            while len(taken) < len(raw) and (not taken or time.monotonic() < ends_at):
                taken.append(self._lines.take(batch, owner, raw[len(taken)], remaining_s))
        return taken

    def _store(self, batch: Batch, raw: Sequence[RawLine], taken: Sequence[ParsedLine]) -> int:
        """Store as many of the lines as possible, in order; return their number."""
        while raw:
            try:
                last = raw[-1]
                accepted = batch_steps.add_lines(
                    self._db, batch, taken, next_line=last.number + 1, next_offset=last.next_offset
                )
                self._lines.note_accepted(accepted or ())
                break
            except LinesOverLimit as fewer:
                # The other lines wait for free capacity in the tenant's limits, at most until the batch expires.
                num_lines = fewer.num_lines
            except InvalidRequest:
                # Postgres rejects a value in one of the lines. Bisect to find it: only that line fails.
                num_lines = len(raw) // 2
                if num_lines == 0:
                    refused = self._lines.refuse(raw[0])
                    if taken[0] == refused:
                        raise
                    num_lines, taken = 1, [refused]
            raw, taken = raw[:num_lines], taken[:num_lines]
        return len(raw)

    def _forget_progress(self) -> None:
        """Stop the long tasks: another process may have led, and gone on with them."""
        for batch_id in [*self._long_tasks]:
            self._stop_task(batch_id)

    def _stop_task(self, batch_id: str) -> None:
        self._long_tasks.pop(batch_id).pieces.close()


def keeper_for(runtime: Runtime) -> BatchKeeper:
    """Return the keeper of an API process."""
    return BatchKeeper(
        runtime.settings,
        runtime.duties_db,
        open_blobs(runtime.settings, runtime.db.seal),
        submissions=runtime.submissions,
        pipelines=PipelineLines(runtime.submissions.hook(FlowSubmissions)),
        queue_limits=runtime.queue_limits,
        on_cancelled=partial(announce_cancelled, runtime),
        tracing=runtime.tracing,
    )
