"""The work of every task that runs on an encoder: a job's inputs in, one vector for each out, as the outcome to write.

A score is a vector of one number.

Nothing is streamed, and nothing is kept of an attempt that ends early: the next attempt starts from the beginning.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from headrace.assembly import parts
from headrace.models.engine.call_engine import CallConfig, CallEngine
from headrace.models.engine.encoder_engine import EncodeConfig, EncodeEngine
from headrace.models.engine.protocol import AnyEngine, Engine
from headrace.models.engine.requests import EncodeOutput, EncodeRequest, FinishReason
from headrace.models.engine.runner import Encoder
from headrace.models.loading.load import number_format
from headrace.store.jobs.claims import Claim, Finish
from headrace.store.jobs.job_rows import EndRows
from headrace.store.payloads.job_payload import JobErrorBody, Usage
from headrace.store.registry.models import ModelVersion
from headrace.store.registry.verification_report import GoldenAnswer
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.streams.checkpoints import Checkpoint
from headrace.workers.runs.in_flight import Attempt
from headrace.workers.runs.job_runner import EngineClient
from headrace.workers.runs.outcome import STATES, Retry
from headrace.workers.tasks.self_test import SelfTest, run_all
from headrace.workers.tasks.task_model import EngineSetup, TaskModel, WorkContext, quiet_setup


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """A job for an encoder: its inputs as tokens, the encoder's options, and what makes the output of the vectors.

    ``stored``: makes what a feature stores with the end of the job.
    """

    inputs: tuple[tuple[int, ...], ...]
    options: Any
    output: Callable[[Sequence[bytes]], dict[str, Any]]
    stored: Callable[[Sequence[bytes]], EndRows] | None = None


ReadClaim: TypeAlias = Callable[[Claim, WorkContext], EncodeJob]
"""Returns the job of a claim. Raises InvalidRequest if its payload cannot be read or does not fit."""


@dataclass(frozen=True, slots=True)
class EncoderModel(TaskModel):
    """A model version that is an encoder. A task's subclass reads the payloads of its jobs."""

    version: ModelVersion
    encoder: Encoder

    @abstractmethod
    def read(self, payload: Mapping[str, Any]) -> EncodeJob:
        """Return the job of a stored payload. Raises InvalidRequest if it cannot be read or does not fit."""

    @property
    @abstractmethod
    def example(self) -> Mapping[str, Any]:
        """The payload of a small job, for the self-test."""

    def pass_ms(self, settings: Settings) -> float:
        """Return about how long a pass of the engine may take, in milliseconds; infinite: as long as it takes."""
        return settings.encode_pass_ms

    def self_test(self, settings: Settings, golden: Sequence[GoldenAnswer]) -> SelfTest:
        """Encode a small job. Vectors have no golden answers: they are only checked to be finite."""
        job = self.read(self.example)
        request = EncodeRequest("self-test", job.inputs, job.options)
        _, took_s = run_all(self.new_engine(quiet_setup(settings, 1)), [request])
        return SelfTest(
            dtype=number_format(self.version, settings),
            tokens_per_s=request.num_tokens / took_s,
            context_tokens=self.encoder.context_window,
        )

    def new_engine(self, setup: EngineSetup) -> EncodeEngine | CallEngine:
        """Return an engine for encoders."""
        settings = setup.settings
        pass_s, gives_way = self.pass_ms(settings) / 1000, settings.encode_gives_way
        config = EncodeConfig(setup.num_slots, settings.encode_tokens, pass_s, gives_way=gives_way)
        return EncodeEngine(self.encoder, config, on_room=setup.on_room, on_failed=setup.on_failed)

    def read_claim(self, claim: Claim, _context: WorkContext) -> EncodeJob:
        """Return the job of a claim of the model's own task. Raises InvalidRequest as ``read`` does."""
        return self.read(claim.payload)

    def new_work(self, engine: AnyEngine, context: WorkContext) -> "EncodeWork":
        """Return the work for the jobs of this model, and for those of other tasks that it serves."""
        served = [(part.is_its, part.reader(self, context.settings)) for part in parts("served", ServedPart)]

        def read(claim: Claim, context: WorkContext) -> EncodeJob:
            others = (reader for is_its, reader in served if reader is not None and is_its(claim))
            return next(others, self.read_claim)(claim, context)

        return EncodeWork(engine, context, read)


@dataclass(frozen=True, slots=True)
class ServedPart:
    """The ``PART`` of a feature's file ``served``: it reads jobs that the models of another task run.

    ``reader`` returns what reads them for a loaded model, or None if the model cannot run them.
    """

    is_its: Callable[[Claim], bool]
    reader: Callable[[EncoderModel, Settings], ReadClaim | None]


def new_call_engine(encoder: Encoder, setup: EngineSetup, timeout_s: float) -> CallEngine:
    """Return the engine for a task that waits more than it computes, whose ``encoder`` many threads may call."""
    return CallEngine(encoder, CallConfig(setup.num_slots, timeout_s), on_room=setup.on_room, on_failed=setup.on_failed)


class EncodeWork:
    """Runs the jobs of one encoder. ``compute`` is called from many threads at once."""

    def __init__(
        self,
        engine: Engine[EncodeRequest, EncodeOutput],
        context: WorkContext,
        read: ReadClaim,
    ) -> None:
        self._engine = EngineClient(engine, context.admission, context.in_flight, context.spans)
        self._frames = context.frames
        self._read = read
        self._context = context
        self._metrics = context.metrics

    def compute(self, attempt: Attempt) -> Finish | Retry:
        """Encode the job's inputs. Raises InvalidRequest for a payload that cannot be read or does not fit."""
        job = self._read(attempt.claim, self._context)
        request = EncodeRequest(
            attempt.id, job.inputs, job.options, attempt.deadline, class_rank=attempt.claim.class_rank
        )
        if attempt.epoch > 1:
            self._frames.put_start(attempt.id, Checkpoint().continued_by(attempt.epoch))
        waited_s = time.monotonic() - attempt.claimed_at
        encoded = self._engine.run(attempt, request, num_prompt=request.num_tokens, max_tokens=0)
        times = self._metrics.times[attempt.claim.class_rank]
        if attempt.epoch == 1:
            times.queue.observe(attempt.claim.queued_s + waited_s)
        times.prefill.observe(encoded.total_s)
        verdict = completed(attempt.claim, encoded, job.output)
        if job.stored is None or isinstance(verdict, Retry) or verdict.state is not JobState.SUCCEEDED:
            return verdict
        return replace(verdict, stored=job.stored(encoded.vectors))


def completed(
    claim: Claim, encoded: EncodeOutput, output: Callable[[Sequence[bytes]], dict[str, Any]]
) -> Finish | Retry:
    """Return the outcome of a request that the engine ended. One that was handed back is not charged."""
    if encoded.finish_reason is FinishReason.HANDED_BACK:
        return Retry("handed_back", "the attempt was handed back for another to begin anew", charge=False)
    state = STATES[encoded.finish_reason]
    late = JobErrorBody(
        code="deadline_exceeded", message="the deadline passed while the job ran", attempt=claim.attempt
    )
    spent = Usage(
        input_tokens=encoded.num_tokens,
        output_tokens=0,
        queue_ms=claim.queued_s * 1000,
        compute_ms=encoded.total_s * 1000,
    )
    return Finish(
        job_id=claim.job_id,
        epoch=claim.epoch,
        state=state,
        output=output(encoded.vectors) if state is JobState.SUCCEEDED else None,
        error=late.model_dump() if state is JobState.EXPIRED else None,
        usage=spent.model_dump(),
        tenant_id=claim.tenant_id,
    )
