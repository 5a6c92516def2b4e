"""Request models of OpenAI's vector stores."""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from headrace.features.retrieval.ingest_order import LARGEST_CHUNK, SMALLEST_CHUNK
from headrace.producer_api.http.job_options import Metadata
from headrace.store.payloads.retrieval import RankingOptions
from headrace.store.payloads.strict_model import Strict

MOST_FILES = 500
MOST_RESULTS = 50

FileIdText = Annotated[str, StringConstraints(min_length=1, max_length=100)]
AttributeKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
AttributeText = Annotated[str, StringConstraints(max_length=512)]
Attributes = Annotated[
    dict[AttributeKey, bool | Annotated[float, Field(allow_inf_nan=False)] | AttributeText],
    Field(max_length=16),
]
_ATTRIBUTES = "your own keys and values; searches filter by them"
StoreName = Annotated[str, StringConstraints(max_length=256)]
FileIds = Annotated[tuple[FileIdText, ...], Field(max_length=MOST_FILES)]


class StoreLife(Strict):
    """When a store expires."""

    anchor: Literal["last_active_at"]
    days: int = Field(ge=1, le=365, description="days after its last use")


class StaticChunking(Strict):
    """How long passages are, in tokens of the store's model."""

    max_chunk_size_tokens: int = Field(
        ge=SMALLEST_CHUNK, le=LARGEST_CHUNK, description="most tokens of a passage; the model's window is a limit too"
    )
    chunk_overlap_tokens: int = Field(
        ge=0, le=LARGEST_CHUNK // 2, description="tokens that a passage shares with the one before"
    )

    @model_validator(mode="after")
    def _is_less_than_half(self) -> Self:
        if self.chunk_overlap_tokens > self.max_chunk_size_tokens // 2:
            raise ValueError("`chunk_overlap_tokens` may be half of `max_chunk_size_tokens` at most")
        return self


class ChunkingStrategy(Strict):
    """How a file's text is cut into passages."""

    type: Literal["auto", "static"] = Field(description="`auto`: up to 800 tokens, as the model's window allows")
    static: StaticChunking | None = Field(None, description="the numbers for `static`")

    @model_validator(mode="after")
    def _has_numbers(self) -> Self:
        if (self.type == "static") != (self.static is not None):
            raise ValueError("give `static` with the type `static`, and with no other")
        return self


Chunking = Annotated[ChunkingStrategy | None, Field(description="how the text is cut; `auto` without it")]


class NewStore(Strict):
    """The body of ``POST /v1/vector_stores``."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"name": "Handbook", "file_ids": ["file_0197f0c2a3b47d518e9a2b6c7d8e9f01"]}]},
    )

    name: StoreName | None = Field(None, description="a name of your own")
    description: Annotated[str, StringConstraints(max_length=512)] | None = Field(None, description="what is in it")
    model: str | None = Field(
        None, description="an extension: the embedding model; without it HEADRACE_RETRIEVAL_MODEL, or the only one"
    )
    file_ids: FileIds = Field((), description="files to add, as in a file batch")
    chunking_strategy: Chunking = None
    expires_after: StoreLife | None = Field(None, description="without it the store does not expire")
    metadata: Metadata | None = Field(None, description="your own keys and values")


class StoreChanges(Strict):
    """The body of ``POST /v1/vector_stores/{vector_store_id}``."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{"name": "Handbook 2026"}]})

    name: StoreName | None = Field(None, description="the new name")
    metadata: Metadata | None = Field(None, description="replaces all of it")
    expires_after: StoreLife | None = Field(None, description="null: the store does not expire any more")


class NewStoreFileBody(Strict):
    """The body of ``POST /v1/vector_stores/{vector_store_id}/files``."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [{"file_id": "file_0197f0c2a3b47d518e9a2b6c7d8e9f01", "attributes": {"year": 2026}}]
        },
    )

    file_id: FileIdText = Field(description="a file of `POST /v1/files`")
    attributes: Attributes | None = Field(None, description=_ATTRIBUTES)
    chunking_strategy: Chunking = None


class FileOfBatch(Strict):
    """A file of a batch, with attributes of its own."""

    file_id: FileIdText = Field(description="a file of `POST /v1/files`")
    attributes: Attributes | None = Field(None, description=_ATTRIBUTES)
    chunking_strategy: Chunking = None


class NewFileBatch(Strict):
    """The body of ``POST /v1/vector_stores/{vector_store_id}/file_batches``."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"file_ids": ["file_0197f0c2a3b47d518e9a2b6c7d8e9f01"]}]},
    )

    file_ids: FileIds | None = Field(None, description="the files; `attributes` and `chunking_strategy` are of all")
    files: Annotated[tuple[FileOfBatch, ...], Field(max_length=MOST_FILES)] | None = Field(
        None, description="instead of `file_ids`: files with attributes of their own"
    )
    attributes: Attributes | None = Field(None, description=_ATTRIBUTES)
    chunking_strategy: Chunking = None

    @model_validator(mode="after")
    def _has_files(self) -> Self:
        if bool(self.file_ids) == bool(self.files):
            raise ValueError("give the files in `file_ids` or in `files`, at least one")
        return self

    @property
    def entries(self) -> list[FileOfBatch]:
        """The files, each once, the last entry of it."""
        shared = {"attributes": self.attributes, "chunking_strategy": self.chunking_strategy}
        given = self.files or [FileOfBatch(file_id=file_id, **shared) for file_id in self.file_ids or ()]
        return [*{one.file_id: one for one in given}.values()]


class FileChanges(Strict):
    """The body of ``POST /v1/vector_stores/{vector_store_id}/files/{file_id}``."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"attributes": {"year": 2026}}]}
    )

    attributes: Attributes | None = Field(description="replaces all of them; null: none")


Question = Annotated[str, StringConstraints(min_length=1, max_length=16_384)]


class SearchBody(Strict):
    """The body of ``POST /v1/vector_stores/{vector_store_id}/search``."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"query": "How long is the warranty?", "filters": {"type": "eq", "key": "year", "value": 2026}}
            ]
        },
    )

    query: Question | Annotated[tuple[Question, ...], Field(min_length=1, max_length=16)] = Field(
        description="a question, or several, whose results are joined"
    )
    max_num_results: int = Field(10, ge=1, le=MOST_RESULTS, description="most results")
    filters: dict[str, Any] | None = Field(
        None, description="on attributes: `eq`, `ne`, `gt`, `gte`, `lt`, `lte`, `in`, `nin`, joined by `and`, `or`"
    )
    ranking_options: RankingOptions | None = Field(None, description="how results are ranked")
    rewrite_query: bool | None = Field(None, description="true is not supported: the query is used as it is")

    @property
    def queries(self) -> tuple[str, ...]:
        """The questions."""
        return (self.query,) if isinstance(self.query, str) else self.query
