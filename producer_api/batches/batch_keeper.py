"""Keeps batches going: checks their input, makes its lines jobs a few at a time, and writes what came of them.

One API process keeps them all, the one that holds the keepers' lock; the others stand by. A turn looks at one batch of
each tenant (``batch_turns``), decides what is due (``due``, pure) and does a small piece of it, so that no tenant holds
up another; it takes more of each while it is short. Between turns this thread sleeps three times as long as it worked,
so that it holds up no request either. Long pieces of work, the check and the writing, live in memory: the process that
takes over begins them again. What must not be done twice is a transaction of ``store.batches.batch_steps``.
"""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice

import structlog

from producer_api.batches.batch_input import RawLine, first_bytes, read_lines
from producer_api.batches.batch_lines import Lines
from producer_api.batches.batch_results import publish
from producer_api.batches.batch_turns import WAITING_S, Turns
from producer_api.batches.batch_validation import validate
from producer_api.server.errors import internal_error
from producer_api.submission.queue_limits import QueueLimits
from producer_api.submission.submit import Submissions
from store.batches import batch_steps
from store.batches.batch_steps import BatchProgress, LinesOverLimit, LiveBatch, ParsedLine
from store.batches.batches import Batch
from store.db.database import Database
from store.db.leader_election import Leadership
from store.errors import HeadraceError, InvalidRequest, StatementTimeout, Unavailable
from store.files import files
from store.files.blob_storage import Blobs
from store.schema.batch_states import BatchStatus
from store.settings import Settings, open_vault

_log = structlog.get_logger("producer_api")

TURN_S = 0.02
"""Turns are at least this far apart while there is something to do, and a turn that was shorter has another round."""
IDLE_S = 1.0
"""After this time at the latest a batch is found that another process has made."""
REST = 3.0
"""Times as long as it worked this thread sleeps."""

LINES_A_TURN = 64
BYTES_A_TURN = 1 << 20
FEWEST_UNDER_WAY = 8
LONG_WORKS = 4
"""So many batches of one tenant are checked or written at a time: each holds a file open, and what it has seen."""
TIDY_S = 60.0
SWEEP_S = 3600.0

OnCancelled = Callable[[list[str], list[str]], None]
"""Is told of jobs whose workers must hear that they are cancelled, and of jobs that have ended by it."""


class Step(Enum):
    """What is due for a batch."""

    VALIDATE = auto()
    TAKE_LINES = auto()
    WAIT = auto()
    FINALIZE = auto()
    CANCEL_JOBS = auto()
    PUBLISH = auto()


def due(progress: BatchProgress) -> Step:
    """Return what is due. A batch whose window is over takes no more lines; their jobs end at the same deadline."""
    batch = progress.batch
    match batch.status:
        case BatchStatus.VALIDATING:
            return Step.PUBLISH if progress.remaining_s <= 0 else Step.VALIDATE
        case BatchStatus.IN_PROGRESS:
            num_taken = batch.num_completed + batch.num_failed + progress.num_unfinished
            if num_taken < batch.num_total and progress.remaining_s > 0:
                return Step.TAKE_LINES
            return Step.WAIT if progress.num_unfinished else Step.FINALIZE
        case BatchStatus.CANCELLING:
            return Step.CANCEL_JOBS if progress.num_unfinished else Step.PUBLISH
        case BatchStatus.FINALIZING:
            return Step.PUBLISH
        case _:
            return Step.WAIT


def num_to_take(num_unfinished: int, num_live: int, num_tenants: int, most_under_way: int) -> int:
    """Return how many lines a batch may take now.

    Tenants share what may be under way, and the ``num_live`` batches of a tenant its share; a new one always begins.
    """
    of_tenant = max(FEWEST_UNDER_WAY, most_under_way // max(1, num_tenants))
    share = max(1, of_tenant // max(1, num_live))
    return max(0, min(LINES_A_TURN, share - num_unfinished))


@dataclass(frozen=True, slots=True)
class _Work:
    """A long piece of work on a batch, paused between its pieces."""

    tenant_id: str
    step: Step
    pieces: Generator[None]


class BatchKeeper:
    """The thread. ``start`` and ``stop`` are the process's; ``wake`` says that there is a new batch."""

    def __init__(
        self,
        settings: Settings,
        blobs: Blobs,
        *,
        submissions: Submissions,
        queue_limits: QueueLimits,
        on_cancelled: OnCancelled,
    ) -> None:
        self._settings = settings
        self._blobs = blobs
        self._queue_limits = queue_limits
        self._on_cancelled = on_cancelled
        # A connection for the lock and one to work with: the routes' are not taken from them.
        self._db = Database(
            settings.database_url,
            pool_size=2,
            application_name="headrace-batches",
            vault=open_vault(settings),
            # A content is removed from the storage, which may be far away, in the transaction that forgets it.
            idle_timeout_s=30,
        )
        self._lines = Lines(settings, self._db, submissions)
        self._works: dict[str, _Work] = {}
        self._turns = Turns()
        self._tidy_at = self._sweep_at = 0.0
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)

    def start(self) -> None:
        """Begin, unless the settings leave batches to others."""
        if self._settings.keep_batches == "on":
            self._thread.start()

    def stop(self) -> None:
        """Put everything down; another process goes on with it."""
        self._stopping.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        self._db.close()

    def wake(self) -> None:
        """Let the next turn be now."""
        self._woken.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with batch_steps.keeper_lock(self._db) as lead:
                    if lead:
                        self._keep(lead)
            except HeadraceError as error:
                _log.warning("batches_not_kept", reason=error.message)
            except Exception as defect:  # noqa: BLE001 - it must not end the thread that every batch waits for
                internal_error(defect)
            for batch_id in [*self._works]:
                self._put_down(batch_id)
            self._stopping.wait(IDLE_S)

    def _keep(self, lead: Leadership) -> None:
        _log.info("batches_kept")
        while not self._stopping.is_set():
            lead.check()
            self._woken.clear()
            began_s = time.thread_time()
            pause_s = self._turn()
            # Of the processor: while this thread waits for Postgres, it is in nobody's way.
            took_s = time.thread_time() - began_s
            self._woken.wait(max(pause_s, REST * took_s))

    def _turn(self) -> float:
        """Do pieces of what is due, at least one for every tenant; return the shortest pause that makes sense now."""
        self._tidy()
        found = batch_steps.list_live(self._db)
        self._turns.keep(found)
        for batch_id in self._works.keys() - {batch.id for batch in found}:
            self._put_down(batch_id)
        ends_at = time.monotonic() + TURN_S
        has_worked = False
        while batches := self._turns.round():
            for batch in batches:
                has_worked |= self._advance(batch)
            if time.monotonic() >= ends_at or self._stopping.is_set():
                break
        if has_worked:
            return TURN_S
        return WAITING_S if found else IDLE_S

    def _advance(self, batch: LiveBatch) -> bool:
        """Do the next piece for a batch; return False if there was none, or it failed."""
        try:
            progress = batch_steps.count_ended_lines(self._db, batch.tenant_id, batch.id)
            if self._do(due(progress), progress) is not Step.WAIT:
                self._turns.worked(batch)
                return True
            self._turns.waits(batch)
        except Unavailable as error:
            if error.code == "database_unavailable" and not isinstance(error, StatementTimeout):
                raise
            self._fail(batch, error)
        except HeadraceError as error:
            self._fail(batch, error)
        except Exception as defect:  # noqa: BLE001 - the others go on; this one is tried again, and expires in the end
            internal_error(defect)
            self._turns.failed(batch)
        return False

    def _fail(self, batch: LiveBatch, error: HeadraceError) -> None:
        _log.warning("batch_waits", batch_id=batch.id, reason=error.message)
        self._turns.failed(batch)

    def _do(self, step: Step, progress: BatchProgress) -> Step:
        """Do a piece of a step; return WAIT if there was nothing to do."""
        batch = progress.batch
        match step:
            case Step.VALIDATE | Step.PUBLISH:
                return step if self._work_on(step, batch) else Step.WAIT
            case Step.TAKE_LINES:
                return step if self._take_lines(progress) else Step.WAIT
            case Step.FINALIZE:
                batch_steps.finalize(self._db, batch.tenant_id, batch.id)
            case Step.CANCEL_JOBS:
                running, ended = batch_steps.cancel_jobs(self._db, batch.tenant_id, batch.id)
                self._on_cancelled(running, ended)
                return step if running or ended else Step.WAIT
            case Step.WAIT:
                pass
        return step

    def _work_on(self, step: Step, batch: Batch) -> bool:
        """Do the next piece of a long work; what another step had begun is put down. False: it cannot begin yet."""
        work = self._works.get(batch.id)
        if work is not None and work.step is not step:
            self._put_down(batch.id)
            work = None
        if work is None:
            if sum(each.tenant_id == batch.tenant_id for each in self._works.values()) >= LONG_WORKS:
                return False
            work = self._works[batch.id] = _Work(batch.tenant_id, step, self._begin(step, batch))
        try:
            next(work.pieces)
        except StopIteration:
            self._works.pop(batch.id)
        except BaseException:
            self._works.pop(batch.id)
            raise
        return True

    def _begin(self, step: Step, batch: Batch) -> Generator[None]:
        if step is Step.VALIDATE:
            return validate(self._db, self._blobs, self._lines, self._settings, batch)
        return publish(self._db, self._blobs, self._settings, batch)

    def _take_lines(self, progress: BatchProgress) -> int:
        """Make the next lines jobs, as many as may be under way; return how many that were."""
        batch, turns = progress.batch, self._turns
        num_live, most_under_way = turns.num_live(batch.tenant_id), self._settings.batch_lines_under_way
        most = num_to_take(progress.num_unfinished, num_live, turns.num_tenants, most_under_way)
        most = min(most, self._queue_limits.slack(batch.tenant_id))
        if most <= 0 or batch.input_digest is None:
            return 0
        with self._blobs.open(batch.input_digest) as content:
            found = read_lines(content, self._settings.max_body_bytes, number=batch.next_line, offset=batch.next_offset)
            raw = list(first_bytes(islice(found, most), BYTES_A_TURN))
        if not raw:
            return 0
        owner = self._lines.owner(batch)
        return self._store(batch, raw, [self._lines.take(batch, owner, line, progress.remaining_s) for line in raw])

    def _store(self, batch: Batch, raw: Sequence[RawLine], taken: Sequence[ParsedLine]) -> int:
        """Store the lines, or as many of the first as can be; return how many that were."""
        while raw:
            try:
                last = raw[-1]
                batch_steps.add_lines(self._db, batch, taken, next_line=last.number + 1, next_offset=last.next_offset)
                break
            except LinesOverLimit as fewer:
                # The others wait for room in their tenant's limits, to the end of the batch's window.
                num_lines = fewer.num_lines
            except InvalidRequest:
                # One of them has a value that Postgres refuses: it is looked for, and fails alone.
                num_lines = len(raw) // 2
                if num_lines == 0:
                    refused = self._lines.refuse(raw[0])
                    if taken[0] == refused:
                        raise
                    num_lines, taken = 1, [refused]
            raw, taken = raw[:num_lines], taken[:num_lines]
        return len(raw)

    def _tidy(self) -> None:
        """Now and then remove files whose time is over, and contents that nothing refers to."""
        now = time.monotonic()
        if now < self._tidy_at:
            return
        self._tidy_at = now + TIDY_S
        try:
            files.expire(self._db)
            while files.remove_unreferenced(self._db, self._blobs) and not self._stopping.is_set():
                pass
            if now >= self._sweep_at:
                self._sweep_at = now + SWEEP_S
                self._blobs.sweep()
        except Unavailable as error:
            _log.warning("files_not_tidied", reason=error.message)

    def _put_down(self, batch_id: str) -> None:
        self._works.pop(batch_id).pieces.close()
