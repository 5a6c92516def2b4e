"""The job that reads a file into a vector store: a job of the store's embedding model, made by the API alone.

It is a job of the task ``embed`` whose inputs are in a file. Its passages are written in the transaction that ends it
(``store.retrieval.passages``), so each is there once, however often a worker was lost.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, StringConstraints

from headrace.store.payloads.job_payload import JobOrder, PinnedPolicy
from headrace.store.payloads.strict_model import Strict

MAX_PASSAGES = 2048
"""Of one file."""

SMALLEST_CHUNK = 100
LARGEST_CHUNK = 4096
DEFAULT_CHUNK = 800

_CHARS_A_TOKEN = 4

_Name = Annotated[str, StringConstraints(min_length=1, max_length=255)]


class IngestSource(Strict):
    """The file, and how its text is cut: passages of at most ``chunk_tokens``, each with the end of the one before."""

    vector_store_id: _Name
    file_id: _Name
    filename: Annotated[str, StringConstraints(max_length=255)]
    ticket: _Name
    num_bytes: int = Field(ge=0)
    chunk_tokens: int = Field(ge=1, le=LARGEST_CHUNK)
    overlap_tokens: int = Field(ge=0, le=LARGEST_CHUNK)

    @property
    def expected_tokens(self) -> int:
        """What reading the file may cost, before its text is known. The usage has what it did cost."""
        return max(1, self.num_bytes // _CHARS_A_TOKEN)


class IngestInput(Strict):
    """What a policy sees of the order: nothing, for the worker applies it to the text of the file."""


class IngestOrder(JobOrder):
    """The request. No route takes it as a body."""

    task: Literal["embed"] = "embed"
    input: IngestInput = IngestInput()
    _source: IngestSource | None = PrivateAttr(None)

    @property
    def source(self) -> IngestSource:
        """The file. Raises ValueError for an order that was made without one."""
        if self._source is None:
            raise ValueError("an order to read a file has no file")
        return self._source

    def with_source(self, source: IngestSource) -> Self:
        """Return the order for a file."""
        found = self.model_copy()
        found._source = source  # noqa: SLF001 - a copy of this order
        return found

    def digest_fields(self) -> dict[str, Any]:
        """Return the ticket: no two orders are equal."""
        return {"ticket": self.source.ticket}


class IngestPayload(Strict):
    """The part of the request that the worker needs, as stored in the job row."""

    ingest: IngestSource
    policy: PinnedPolicy | None = None


class IngestOutput(Strict):
    """The output of the job. The passages are in the vector store."""

    vector_store_id: str
    file_id: str
    passages: int
    characters: int


def is_ingest(payload: Mapping[str, Any]) -> bool:
    """Return True if a stored payload is one of these jobs."""
    return "ingest" in payload
