"""The work of a task of another package: a job's input in, the output of the package's runner out, after the policy."""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any

import structlog

from headrace.assembly import parts
from headrace.models.engine.call_engine import CallEngine
from headrace.models.engine.encoder_engine import EncodeEngine
from headrace.models.engine.protocol import AnyEngine
from headrace.models.engine.requests import EncodeRequest, EngineError
from headrace.models.engine.runner import Encoder
from headrace.models.loading.load import checked_folder, with_encoder_faults
from headrace.models.runners.own_runner import OwnInput, OwnRunner, RunContext
from headrace.prompts.tasks.own_task import num_tokens_of
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.store.errors import CannotLoadHere, HeadraceError, ModelLoadError
from headrace.store.failpoints import failpoint
from headrace.store.jobs.claims import Claim, Finish
from headrace.store.payloads.job_payload import read_payload
from headrace.store.registry.models import ModelVersion
from headrace.store.registry.verification_report import GoldenAnswer
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.streams.stream_log import Progress
from headrace.store.tasks.own_task import OwnTaskSpec
from headrace.tasks import JobOver, TaskError, load_runner
from headrace.workers.runs import outcome
from headrace.workers.runs.in_flight import Attempt, AttemptId
from headrace.workers.runs.outcome import Retry
from headrace.workers.runs.output_guard import open_guards
from headrace.workers.runs.result_files import OpenDrafts, ResultDrafts, ResultsPart
from headrace.workers.tasks.encoding import EncodeJob, EncoderModel, EncodeWork, new_call_engine
from headrace.workers.tasks.self_test import SelfTest, run_all
from headrace.workers.tasks.task_model import EngineSetup, WorkContext, quiet_setup

TOLD_EVERY_S = 0.4
"""The least time between two events of a job's progress. The last one, of all that is done, comes at once."""

MAX_MESSAGE_CHARS = 200
MAX_PREVIEW_CHARS = 256 << 10

SAVED_EVERY_S = 2.0
"""The least time between two states that are saved."""

_SAVING_SHARE = 20
"""Saving takes at most one part in so many of an attempt's time, however slow the storage is."""

log = structlog.get_logger(__name__)


class JobContext(RunContext):
    """The context of one attempt: its files become drafts, its progress frames. The runner's thread calls it.

    ``failure``: why a file could not be made; the attempt fails with it, whatever the runner makes of it.
    """

    def __init__(self, drafts: ResultDrafts, tell: Callable[[Progress], None]) -> None:
        super().__init__()
        self.drafts = drafts
        self.failure: HeadraceError | None = None
        self._tell = tell
        self._told_at = -inf
        self._save_at = time.monotonic() + SAVED_EVERY_S
        self._lock = threading.Lock()
        self._is_over = False
        self._is_wanted: Callable[[], bool] = lambda: True

    def begin(self, is_wanted: Callable[[], bool]) -> None:
        """Drop what an earlier run of the input made."""
        self._is_wanted = is_wanted
        with self._lock:
            self.drafts.drop()
            self.failure = None

    @property
    def cancelled(self) -> bool:
        """See ``Context``."""
        return self._is_over or not self._is_wanted()

    def checkpoint(self, state: bytes | Callable[[], bytes]) -> None:
        """See ``Context``. A state that cannot be stored is left out: the job needs it only if this worker is lost."""
        self._check_wanted()
        failpoint("state.offered")
        if time.monotonic() < self._save_at:
            return
        content = state() if callable(state) else state
        began_at = time.monotonic()
        try:
            with self._lock:
                self._check_open()
                self.drafts.save_state(bytes(content))
            failpoint("state.saved")
        except HeadraceError as error:
            log.warning("state_not_saved", error=error.message)
        took_s = time.monotonic() - began_at
        self._save_at = time.monotonic() + max(SAVED_EVERY_S, _SAVING_SHARE * took_s)

    @property
    def resumed(self) -> bytes | None:
        """See ``Context``."""
        try:
            return self.drafts.saved_state()
        except HeadraceError as error:
            log.warning("state_not_read", error=error.message)
            return None

    def progress(self, done: float, total: float, message: str = "", *, preview: str | None = None) -> None:
        """See ``Context``."""
        self._check_wanted()
        if preview is not None and len(preview) > MAX_PREVIEW_CHARS:
            raise TaskError(f"a preview has at most {MAX_PREVIEW_CHARS} characters")
        now = time.monotonic()
        is_due = now - self._told_at >= TOLD_EVERY_S or done >= total or preview is not None
        if is_due and isfinite(done) and isfinite(total):
            self._told_at = now
            self._tell(Progress(done, total, str(message)[:MAX_MESSAGE_CHARS], preview))

    def file(
        self,
        name: str,
        content: bytes,
        media_type: str,
        *,
        width: int | None = None,
        height: int | None = None,
        seconds: float | None = None,
    ) -> None:
        """See ``Context``."""
        facts = {"width": width, "height": height, "seconds": seconds}
        known = {key: value for key, value in facts.items() if value is not None}
        with self._lock:
            self._check_open()
            try:
                self.drafts.add(name, bytes(content), media_type, known)
            except HeadraceError as error:
                self.failure = error
                raise

    def read(self, file_id: str) -> bytes:
        """See ``Context``."""
        try:
            return self.drafts.read(file_id)
        except HeadraceError as error:
            self.failure = error
            raise

    def close(self) -> None:
        """Remove drafts that are not kept. A runner that was left behind makes no more files."""
        with self._lock:
            self._is_over = True
            self.drafts.drop()

    def _check_open(self) -> None:
        if self._is_over:
            raise JobOver("the job has ended")

    def _check_wanted(self) -> None:
        if self.cancelled:
            raise JobOver("the job has ended, or is to end")


@dataclass(frozen=True, slots=True)
class OwnModel(EncoderModel):
    """A version that the runner of another package serves. ``others``: more tasks whose inputs the runner takes."""

    spec: OwnTaskSpec
    others: tuple[OwnTaskSpec, ...] = ()

    def spec_of(self, claim: Claim) -> OwnTaskSpec:
        """Return the task of a claim."""
        return next((one for one in self.others if one.name == claim.task), self.spec)

    @property
    def example(self) -> Mapping[str, Any]:
        """The example of the task."""
        return {"input": dict(self.spec.declared.example)}

    def read(self, payload: Mapping[str, Any]) -> EncodeJob:
        """Return the job's input as one row of as many tokens as it costs; the options are the input itself."""
        return _job_of(self.spec, payload)

    def read_claim(self, claim: Claim, _context: WorkContext) -> EncodeJob:
        """Return the job of a claim, as ``read``."""
        return _job_of(self.spec_of(claim), claim.payload)

    def pass_ms(self, _settings: Settings) -> float:
        """Infinite: what a call of a foreign runner costs beside its inputs is not known."""
        return inf

    def self_test(self, settings: Settings, golden: Sequence[GoldenAnswer]) -> SelfTest:
        """Compute the example. The runner decides its own number format."""
        job = self.read(self.example)
        request = EncodeRequest("self-test", job.inputs, job.options)
        _, took_s = run_all(self.new_engine(quiet_setup(settings, 1)), [request])
        return SelfTest(tokens_per_s=request.num_tokens / took_s, context_tokens=self.encoder.context_window)

    def new_engine(self, setup: EngineSetup) -> EncodeEngine | CallEngine:
        """Return an engine for batches, or for calls."""
        if not self.spec.declared.is_call:
            return EncoderModel.new_engine(self, setup)
        return new_call_engine(self.encoder, setup, self.spec.declared.call_timeout_s)

    def new_work(self, engine: AnyEngine, context: WorkContext) -> "OwnWork":
        """Return the work for the jobs of this model."""
        return OwnWork(engine, context, self)


class OwnWork(EncodeWork):
    """Runs jobs and applies the tenant's policy to their outputs. ``compute`` is called from many threads at once."""

    def __init__(self, engine: AnyEngine, context: WorkContext, model: OwnModel) -> None:
        super().__init__(engine, context, self._read_job)
        self._model = model
        self._guards = open_guards(context.db)
        self._own = context
        self._contexts: dict[AttemptId, JobContext] = {}
        self._open_drafts: OpenDrafts | None = None
        if model.spec.declared.with_context:
            (part,) = parts("results", ResultsPart)
            self._open_drafts = part.open(context.settings, context.db)

    def _read_job(self, claim: Claim, context: WorkContext) -> EncodeJob:
        job = self._model.read_claim(claim, context)
        own = self._contexts.get(AttemptId(claim.job_id, claim.epoch))
        return job if own is None else replace(job, options=OwnInput(job.options, own))

    def compute(self, attempt: Attempt) -> Finish | Retry:
        """Compute the job's input. Raises InvalidRequest for a payload that cannot be read, and why a file that the
        runner made could not be stored.
        """
        if self._open_drafts is None:
            return self._checked(attempt)
        drafts = self._open_drafts(self._own.db, attempt.claim)
        own = JobContext(drafts, lambda progress: self._own.frames.put_progress(attempt.id, progress))
        self._contexts[attempt.id] = own
        try:
            return self._with_files(self._checked(attempt), own)
        except EngineError as error:
            if own.failure is not None:
                raise own.failure from error
            raise
        finally:
            del self._contexts[attempt.id]
            own.close()

    def _with_files(self, verdict: Finish | Retry, own: JobContext) -> Finish | Retry:
        """Return the outcome with the files. They are of jobs that succeed alone."""
        if isinstance(verdict, Retry) or verdict.state is not JobState.SUCCEEDED or verdict.output is None:
            return verdict
        if own.failure is not None:
            raise own.failure
        shown, rows = own.drafts.keep()
        if not shown:
            return verdict
        return replace(verdict, output={**verdict.output, "files": list(shown)}, stored=rows)

    def _checked(self, attempt: Attempt) -> Finish | Retry:
        """Return the outcome after the policy for outputs."""
        claim = attempt.claim
        spec = self._model.spec_of(claim)
        payload = read_payload(spec.payload, claim.payload)
        pinned = payload.policy
        rules = None if pinned is None else self._guards.output(claim.tenant_id, pinned, payload.input)
        verdict = super().compute(attempt)
        if rules is None or isinstance(verdict, Retry) or verdict.output is None:
            return verdict
        found = rules.apply_to_fields(verdict.output, spec.declared.output_texts)
        if found.blocked_by is not None:
            return outcome.blocked(claim, found.blocked_by, verdict.usage or {})
        hits = {"policy": [hit.model_dump() for hit in found.hits]} if found.hits else {}
        return replace(verdict, output={**found.output, **hits})


def _job_of(spec: OwnTaskSpec, payload: Mapping[str, Any]) -> EncodeJob:
    given = read_payload(spec.payload, payload).input
    return EncodeJob(((0,) * num_tokens_of(spec, given),), given, output_of)


def load_own_model(spec: OwnTaskSpec, version: ModelVersion, settings: Settings, _read_file: ReadFile) -> OwnModel:
    """Load a version by the package's own function. Raises ModelLoadError."""
    encoder = with_encoder_faults(_load(spec, version), settings, lambda _row: "")
    return OwnModel(version, encoder, spec)


def _load(spec: OwnTaskSpec, version: ModelVersion) -> Encoder:
    folder = None if version.is_fake else checked_folder(version)
    task = spec.declared
    try:
        return OwnRunner(task, load_runner(task, folder))
    except (ImportError, AttributeError, MemoryError) as error:
        raise CannotLoadHere(_why(spec, error)) from error
    except Exception as error:
        raise ModelLoadError(_why(spec, error)) from error


def _why(spec: OwnTaskSpec, error: Exception) -> str:
    said = " ".join(str(error).split())
    return f"the runner {spec.declared.runner} of the task {spec.name} cannot be loaded: {type(error).__name__}: {said}"


def output_of(vectors: Sequence[bytes]) -> dict[str, Any]:
    """Return the output of a job with one input: the runner's bytes are JSON."""
    output: dict[str, Any] = json.loads(vectors[0])
    return output
