"""The interface between the worker's runtime and a task: a loaded model makes the engine and the work of its task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from headrace.models.engine.protocol import AnyEngine
from headrace.models.engine.requests import Delta
from headrace.models.engine.runner import Runner
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.db.database import Database
from headrace.store.errors import ModelLoadError
from headrace.store.metrics.worker_metrics import WorkerMetrics
from headrace.store.registry.models import ModelVersion, queue_name
from headrace.store.registry.verification_report import GoldenAnswer
from headrace.store.settings import Settings
from headrace.store.streams.fencing import FencedLogs
from headrace.store.tasks.task_spec import TaskSpec
from headrace.workers.runs.attempt_spans import AttemptSpans
from headrace.workers.runs.engine_admission import EngineAdmission
from headrace.workers.runs.in_flight import InFlightAttempts
from headrace.workers.runs.job_runner import Work
from headrace.workers.runs.stream_publisher import FrameQueue
from headrace.workers.tasks.self_test import SelfTest


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """The size of the engine and its callbacks, which are as in ``models.engine.protocol``."""

    settings: Settings
    num_slots: int
    on_deltas: Callable[[Sequence[Delta]], None]
    on_room: Callable[[], None]
    on_failed: Callable[[BaseException], None]


@dataclass(frozen=True, slots=True)
class WorkContext:
    """The parts of the worker that a task's work may use. ``db`` is the connection for jobs."""

    in_flight: InFlightAttempts
    admission: EngineAdmission
    frames: FrameQueue
    fenced_logs: FencedLogs
    db: Database
    metrics: WorkerMetrics
    spans: AttemptSpans
    settings: Settings


def quiet_setup(settings: Settings, num_slots: int) -> EngineSetup:
    """Return the setup of an engine that informs nobody, for a self-test."""

    def ignore(*_: object) -> None:
        """Do nothing."""

    return EngineSetup(settings, num_slots, on_deltas=ignore, on_room=ignore, on_failed=ignore)


class TaskModel(ABC):
    """A model version with its weights and files in memory. One subclass is one task."""

    version: ModelVersion

    @property
    def queue(self) -> str:
        """The queue of this version."""
        return queue_name(self.version.model, self.version.version)

    @property
    def engine_description(self) -> str | None:
        """The inference server that runs the version now, as attempts record it; None: this process runs it."""
        return None

    @property
    def default_settings(self) -> Mapping[str, int]:
        """Values for settings of the worker that are not set, because of what runs the model."""
        return {}

    def check_adapter(self, version: ModelVersion) -> None:
        """Raise ModelLoadError unless the files of an adapter are here, and are those that were registered."""
        raise ModelLoadError(f"{version.model}: this version runs no adapters")

    def close(self) -> None:  # noqa: B027 - most models have nothing to end
        """End what was started for the model. The engine is stopped before."""

    def self_test(self, settings: Settings, golden: Sequence[GoldenAnswer]) -> SelfTest:
        """Let the model answer before it takes jobs, and compare with the golden answers. Raises EngineError.

        By default there is nothing to test.
        """
        return SelfTest()

    def scorer(self) -> tuple[Runner, Tokenizer] | None:
        """Return what reads the texts of a quality report; None, as by default, if it shows no probabilities."""
        return None

    @abstractmethod
    def new_engine(self, setup: EngineSetup) -> AnyEngine:
        """Return the engine for the task's requests. It is not started."""

    @abstractmethod
    def new_work(self, engine: AnyEngine, context: WorkContext) -> Work:
        """Return the work for the task's jobs. ``engine`` is what ``new_engine`` returned."""


LoadModel: TypeAlias = Callable[[ModelVersion, Settings, ReadFile], TaskModel]
"""Loads a version's weights and files. Raises ModelLoadError."""


@dataclass(frozen=True, slots=True)
class ModelPart:
    """The ``PART`` of a feature's file ``model``: what loads the versions of its task."""

    task: TaskSpec
    load: LoadModel
