"""What a feature does in a worker for jobs with a parent: such a job is a step, and a plain job enters nothing here."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.assembly import parts
from headrace.store.db.database import Database
from headrace.store.jobs.claims import Finish
from headrace.store.jobs.parent_part import Settled
from headrace.store.settings import Settings
from headrace.store.streams.stream_log import StreamPublisher
from headrace.workers.runs.in_flight import Attempt
from headrace.workers.runs.outcome import Retry

Compute = Callable[[Attempt], Finish | Retry]


class ParentWork(ABC):
    """The work of the feature in one worker. ``settled`` and ``begun`` come after a commit and must not block."""

    @abstractmethod
    def start(self) -> None:
        """Start sending signals."""

    @abstractmethod
    def stop(self) -> None:
        """Send those that wait, and stop."""

    @abstractmethod
    def settled(self, settled: Settled) -> None:
        """Learn that steps have ended."""

    @abstractmethod
    def begun(self, answers: Sequence[str]) -> None:
        """Learn that steps have begun; ``answers`` are the steps whose streams are read."""

    @abstractmethod
    def compute(self, attempt: Attempt, compute: Compute) -> Finish | Retry:
        """Compute a step by ``compute`` of its task, with the input that its payload stands for.

        May raise what ``Work.compute`` raises.
        """


class _NoParents(ParentWork):
    """Without the feature no job has a parent."""

    def start(self) -> None:
        """Start nothing."""

    def stop(self) -> None:
        """Stop nothing."""

    def settled(self, settled: Settled) -> None:
        """Tell nobody."""

    def begun(self, answers: Sequence[str]) -> None:
        """Tell nobody."""

    def compute(self, attempt: Attempt, compute: Compute) -> Finish | Retry:
        """Compute it as a job of its own."""
        return compute(attempt)


NO_PARENTS = _NoParents()


@dataclass(frozen=True, slots=True)
class ParentWorkPart:
    """The ``PART`` of a feature's file ``parent_work``. ``build`` makes its work; ``db`` is the connection for jobs."""

    build: Callable[[Settings, Database, StreamPublisher], ParentWork]


def build_parent_work(settings: Settings, db: Database, streams: StreamPublisher) -> ParentWork:
    """Return the work of the feature."""
    built = [part.build(settings, db, streams) for part in parts("parent_work", ParentWorkPart)]
    return built[0] if built else NO_PARENTS
