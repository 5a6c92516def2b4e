"""What a face stores beside a job: a row of its own, in the transaction that accepts the job.

The submission carries it unread, and asks it only what is here. A job without such a row costs no statement more.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import Connection

from headrace.store.jobs.answered_calls import AnsweredCall
from headrace.store.seal import Seal

if TYPE_CHECKING:
    from headrace.store.jobs.acceptance import NewJob


class FaceRow(ABC):
    """The row of one job. It is never changed. No method but ``write`` does I/O."""

    @property
    @abstractmethod
    def is_kept(self) -> bool:
        """False if the contents of the job are erased as soon as it has ended."""

    @property
    @abstractmethod
    def conversation(self) -> str | None:
        """The conversation that the job belongs to, whose earlier texts are part of its input."""

    @property
    @abstractmethod
    def job_before(self) -> str | None:
        """The job before it in a conversation, whose placeholders its input has."""

    @property
    @abstractmethod
    def answered_calls(self) -> Sequence[AnsweredCall]:
        """The calls that the job begins with."""

    @abstractmethod
    def digested(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the request ``asked``, as JSON, with what of the row makes it another request."""

    @abstractmethod
    def texts(self) -> tuple[Any, Any]:
        """Return what of the row has texts of the caller, for the tenant's policy.

        Of the second, names and keys of schemas can have no placeholders.
        """

    @abstractmethod
    def with_texts(self, first: Any, second: Any) -> Self:
        """Return the row with the ``texts`` as the policy has left them."""

    @classmethod
    @abstractmethod
    def write(cls, connection: Connection, jobs: Sequence["NewJob"], seal: Seal) -> None:
        """Store the rows of these new jobs, which are stored with their steps. Raises InvalidRequest.

        Must not wait for a row that a request of a caller may hold for long.
        """
