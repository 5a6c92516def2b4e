"""The work of a task of another package: a job's input in, the output of the package's runner out, after the policy."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from headrace.models.engine.call_engine import CallEngine
from headrace.models.engine.encoder_engine import EncodeEngine
from headrace.models.engine.protocol import AnyEngine
from headrace.models.engine.requests import EncodeRequest
from headrace.models.engine.runner import Encoder
from headrace.models.loading.load import checked_folder, with_encoder_faults
from headrace.models.runners.own_runner import OwnRunner
from headrace.prompts.tasks.own_task import num_tokens_of
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.store.errors import CannotLoadHere, ModelLoadError
from headrace.store.jobs.claims import Finish
from headrace.store.payloads.job_payload import read_payload
from headrace.store.registry.models import ModelVersion
from headrace.store.registry.verification_report import GoldenAnswer
from headrace.store.settings import Settings
from headrace.store.tasks.own_task import OwnTaskSpec
from headrace.tasks import load_runner
from headrace.workers.runs import outcome
from headrace.workers.runs.in_flight import Attempt
from headrace.workers.runs.outcome import Retry
from headrace.workers.runs.output_guard import open_guards
from headrace.workers.tasks.encoding import EncodeJob, EncoderModel, EncodeWork, new_call_engine
from headrace.workers.tasks.self_test import SelfTest, run_all
from headrace.workers.tasks.task_model import EngineSetup, WorkContext, quiet_setup


@dataclass(frozen=True, slots=True)
class OwnModel(EncoderModel):
    """A version that the runner of another package serves."""

    spec: OwnTaskSpec

    @property
    def example(self) -> Mapping[str, Any]:
        """The example of the task."""
        return {"input": dict(self.spec.declared.example)}

    def read(self, payload: Mapping[str, Any]) -> EncodeJob:
        """Return the job's input as one row of as many tokens as it costs; the options are the input itself."""
        given = read_payload(self.spec.payload, payload).input
        return EncodeJob(((0,) * num_tokens_of(self.spec, given),), given, output_of)

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
        super().__init__(engine, context, model.read_claim)
        self._spec = model.spec
        self._guards = open_guards(context.db)

    def compute(self, attempt: Attempt) -> Finish | Retry:
        """Compute the job's input. Raises InvalidRequest for a payload that cannot be read."""
        claim = attempt.claim
        payload = read_payload(self._spec.payload, claim.payload)
        pinned = payload.policy
        rules = None if pinned is None else self._guards.output(claim.tenant_id, pinned, payload.input)
        verdict = super().compute(attempt)
        if rules is None or isinstance(verdict, Retry) or verdict.output is None:
            return verdict
        found = rules.apply_to_fields(verdict.output, self._spec.declared.output_texts)
        if found.blocked_by is not None:
            return outcome.blocked(claim, found.blocked_by, verdict.usage or {})
        hits = {"policy": [hit.model_dump() for hit in found.hits]} if found.hits else {}
        return replace(verdict, output={**found.output, **hits})


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
