"""The job that reads a file into a vector store: a job of the store's embedding model, made by the API alone.

It is a job of the task ``embed`` whose inputs are in a file. Its passages are written in the transaction that ends it
(``features.retrieval.passages``), so each is there once, however often a worker was lost.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, StringConstraints

from headrace.features.encoders.embed.inputs import PART as EMBED_INPUTS
from headrace.features.encoders.embed.inputs import Embedder, check_texts
from headrace.prompts.tasks.task_inputs import InputModel, Prepared, TaskInputs
from headrace.prompts.tokenizer import Tokenizer
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

    def own_inputs(self) -> Any:
        """Return how it is prepared: it has no inputs of the task."""
        return INGEST_INPUTS

    @property
    def reads_file(self) -> bool:
        """True."""
        return True

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


PASSAGE_PROMPTS = ("document", "passage")
"""Names that models of sentence-transformers give to the text before what is searched."""


def passage_prompt(embedder: Embedder) -> str:
    """Return the text before a passage of a vector store."""
    return embedder.prompt(next((name for name in PASSAGE_PROMPTS if name in embedder.prompts), None))


def passage_window(tokenizer: Tokenizer, embedder: Embedder) -> int:
    """Return the most tokens of a passage: without the special tokens and those of the prompt before it."""
    around = len(tokenizer.encode(passage_prompt(embedder), add_special=True))
    return embedder.context_window - around


def prepare(request: IngestOrder, model: InputModel, policy: PinnedPolicy | None) -> Prepared:
    """Return the payload and the expected cost. The worker applies the policy to the text of the file."""
    check_texts(model.settings)
    return Prepared(IngestPayload(ingest=request.source, policy=policy), request.source.expected_tokens)


INGEST_INPUTS = TaskInputs(
    spec=EMBED_INPUTS.spec,
    prepare=prepare,
    cut_to_length=lambda request, _model: request,
    is_quick=lambda _request, _model: True,
    read_settings=EMBED_INPUTS.read_settings,
)
