"""What reads the texts of a job in a worker, by the rules of its tenant: outputs, and texts that come to a prompt here.

A feature has the rules (``features.policy``). A job without a policy meets nothing of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from headrace.assembly import parts
from headrace.store.db.database import Database
from headrace.store.errors import Unavailable
from headrace.store.payloads.job_payload import PinnedPolicy, PolicyHit
from headrace.store.streams.checkpoints import Marks
from headrace.workers.runs.stream_publisher import FrameFilter

OF_CALLS = 100_000
"""Behind this number: placeholders in texts that other steps returned."""

OF_PASSAGES = 200_000
"""The same in passages, which stand in one prompt with them."""


@dataclass(frozen=True, slots=True)
class FilteredOutput:
    """An output after the policy: its pieces, and the findings of the rules."""

    text: str
    pieces: tuple[str, ...]
    hits: tuple[PolicyHit, ...] = ()
    blocked_by: str | None = None


@dataclass(frozen=True, slots=True)
class FilteredChoices:
    """The outputs of several choices after the policy: the pieces of all with their marks, and each output."""

    pieces: tuple[str, ...]
    marks: Marks
    outputs: tuple[FilteredOutput, ...]


@dataclass(frozen=True, slots=True)
class FilteredFields:
    """An output of fields after the policy, and the findings of the rules."""

    output: dict[str, Any]
    hits: tuple[PolicyHit, ...]
    blocked_by: str | None


class OutputGuard(ABC):
    """The rules for one job's output. What reads an output raises InvalidRequest if that takes too long."""

    @property
    @abstractmethod
    def holds_back(self) -> bool:
        """True if the rules may change outputs: then the model's own text must not be shown or stored."""

    @abstractmethod
    def stream_filter(self, on_blocked: Callable[[], object]) -> FrameFilter:
        """Return a new filter for the frames of an attempt. ``on_blocked`` is called if a rule ends the output."""

    @abstractmethod
    def apply(self, deltas: Sequence[str]) -> FilteredOutput:
        """Return the filtered form of a whole output that came in these deltas."""

    @abstractmethod
    def apply_each(self, deltas: Iterable[str], marks: Marks, num_choices: int) -> FilteredChoices:
        """Return the filtered form of all choices of a job, whose deltas came in this order."""

    @abstractmethod
    def apply_to_fields(self, output: dict[str, Any], names: Collection[str] | None) -> FilteredFields:
        """Return the filtered form of an output of fields: of every text in the fields ``names``, or in all of them."""


class JobGuards(ABC):
    """Makes the guards of jobs in a worker. Thread-safe; may read Postgres, and raise Unavailable and NotFound."""

    @abstractmethod
    def output(self, tenant_id: str, pinned: PinnedPolicy, given: BaseModel | None) -> OutputGuard | None:
        """Return the guard of a job's output, None if no rule is for it.

        ``given``: the payload of a job that generates text, the input of another task's; None if that is no text.
        """

    @abstractmethod
    def texts(
        self, tenant_id: str, pinned: PinnedPolicy, texts: Sequence[str], what: str, *, after: int | None = None
    ) -> tuple[str, ...]:
        """Return texts that came to the worker as the rules let them be used. ``what`` names them in an error.

        ``after``: for texts of a prompt. Values that the job's input has too keep their placeholders, and the numbers
        of others begin behind it; their values are not put back. Raises InvalidRequest if the rules refuse a text.
        """


@dataclass(frozen=True, slots=True)
class OutputPart:
    """The ``PART`` of a feature's file ``output``: what makes the guards of jobs. One feature may have it."""

    open: Callable[[Database], JobGuards]


class _NoGuards(JobGuards):
    """Lets no job with a policy run: its texts must not pass without it."""

    def output(self, tenant_id: str, pinned: PinnedPolicy, given: BaseModel | None) -> OutputGuard | None:
        raise Unavailable("this worker has no policies, and the job has one")

    def texts(
        self, tenant_id: str, pinned: PinnedPolicy, texts: Sequence[str], what: str, *, after: int | None = None
    ) -> tuple[str, ...]:
        raise Unavailable("this worker has no policies, and the job has one")


def open_guards(db: Database) -> JobGuards:
    """Return what makes the guards of jobs, as a feature does."""
    return next((part.open(db) for part in parts("output", OutputPart)), _NoGuards())
