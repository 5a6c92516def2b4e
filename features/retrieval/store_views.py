"""Response models of OpenAI's vector stores."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field

from headrace.features.retrieval.passages import Passage
from headrace.features.retrieval.search import FoundPassage
from headrace.features.retrieval.store_bodies import ChunkingStrategy, StaticChunking, StoreLife
from headrace.features.retrieval.store_files import STATUSES, FileBatch, StoreFile
from headrace.features.retrieval.vector_stores import VectorStore
from headrace.producer_api.http.views import seconds

T = TypeVar("T")

_OTHER: Literal["server_error"] = "server_error"
"""OpenAI's code of a failed file for all other reasons; the message has the job's code."""


class FileCounts(BaseModel):
    """Numbers of files by status."""

    in_progress: int = Field(description="files that wait or are being read")
    completed: int = Field(description="files whose passages are there")
    failed: int = Field(description="files that could not be read")
    cancelled: int = Field(description="files whose reading was cancelled")
    total: int = Field(description="all files")


class StoreObject(BaseModel):
    """A vector store."""

    id: str
    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str = Field(description="its name; empty without one")
    description: str | None = Field(description="what is in it")
    model: str = Field(description="the version that makes its vectors, as `name@3`")
    usage_bytes: int = Field(description="bytes of its passages and their vectors")
    file_counts: FileCounts = Field(description="its files by status")
    status: Literal["in_progress", "completed"] = Field(description="`in_progress` while files are being read")
    expires_after: StoreLife | None = Field(description="when it expires; null: never")
    expires_at: int | None
    last_active_at: int = Field(description="its last use, Unix seconds")
    metadata: dict[str, str]


class FileError(BaseModel):
    """Why a file failed."""

    code: Literal["server_error", "unsupported_file", "invalid_file"]
    message: str


class StoreFileObject(BaseModel):
    """A file in a vector store."""

    id: str
    object: Literal["vector_store.file"] = "vector_store.file"
    created_at: int
    vector_store_id: str = Field(description="the store")
    usage_bytes: int = Field(description="bytes of its passages and their vectors")
    status: Literal["in_progress", "completed", "failed", "cancelled"] = Field(description="how far it is read")
    last_error: FileError | None = Field(description="why it failed; else null")
    chunking_strategy: ChunkingStrategy = Field(description="how its text is cut")
    attributes: dict[str, bool | float | str] = Field(description="your own keys and values")
    job_id: str | None = Field(description="an extension: the job that reads it")


class FileBatchObject(BaseModel):
    """Files that were added together."""

    id: str
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: int
    vector_store_id: str = Field(description="the store")
    status: Literal["in_progress", "completed", "cancelling", "cancelled", "failed"] = Field(
        description="how far it is; `cancelling` until no file of a cancelled batch is in progress"
    )
    file_counts: FileCounts = Field(description="its files by status")


class Page(BaseModel):
    """What every page has."""

    object: Literal["list"] = "list"
    first_id: str | None
    last_id: str | None
    has_more: bool


class StoreList(Page):
    """A page of vector stores."""

    data: list[StoreObject]


class StoreFileList(Page):
    """A page of a store's files."""

    data: list[StoreFileObject]


class PassageText(BaseModel):
    """The text of a passage."""

    type: Literal["text"] = "text"
    text: str


class Place(BaseModel):
    """Where a passage stands in its file."""

    start: int = Field(description="its first character in the file's text")
    end: int = Field(description="the character behind its last")
    page: int | None = Field(description="its page, counted from 1; null where there are no pages")


class FileContentPage(BaseModel):
    """The text of a file, passage by passage."""

    object: Literal["vector_store.file_content.page"] = "vector_store.file_content.page"
    data: list[PassageText]
    has_more: bool
    next_page: str | None = Field(description="`page` of the next request; null: this is all")


class SearchResult(BaseModel):
    """A passage that was found."""

    file_id: str = Field(description="its file")
    filename: str
    score: float = Field(description="from 0 to 1")
    attributes: dict[str, bool | float | str] = Field(description="those of the file")
    content: list[PassageText] = Field(description="its text")
    place: Place = Field(description="an extension: where it stands in its file")


class SearchPage(BaseModel):
    """The result of a search, the best passage first."""

    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str] = Field(description="the questions")
    data: list[SearchResult]
    has_more: Literal[False] = False
    next_page: None = Field(None, description="always null")


def store_object(found: VectorStore) -> StoreObject:
    """Return the store."""
    days = found.expires_days
    return StoreObject(
        id=found.id,
        created_at=int(found.created_at.timestamp()),
        name=found.name,
        description=found.description,
        model=f"{found.model}@{found.model_version}",
        usage_bytes=found.num_bytes,
        file_counts=_counts(found.num_files),
        status="in_progress" if found.num_files.get("in_progress") else "completed",
        expires_after=None if days is None else StoreLife(anchor="last_active_at", days=days),
        expires_at=seconds(found.expires_at),
        last_active_at=int(found.last_active_at.timestamp()),
        metadata=found.metadata,
    )


def file_object(found: StoreFile) -> StoreFileObject:
    """Return the file."""
    return StoreFileObject(
        id=found.file_id,
        created_at=int(found.created_at.timestamp()),
        vector_store_id=found.store_id,
        usage_bytes=found.num_bytes,
        status=found.status,
        last_error=_error(found),
        chunking_strategy=_chunking(found),
        attributes=found.attributes,
        job_id=found.job_id,
    )


def _chunking(found: StoreFile) -> ChunkingStrategy:
    """Return the numbers without a check: they may follow a small window of the model."""
    numbers = StaticChunking.model_construct(
        max_chunk_size_tokens=found.chunk_tokens, chunk_overlap_tokens=found.overlap_tokens
    )
    return ChunkingStrategy.model_construct(type="static", static=numbers)


def _error(found: StoreFile) -> FileError | None:
    if found.status != "failed":
        return None
    error = found.error or {"code": "job_lost", "message": "the file was not read: add it again"}
    code = error.get("code")
    message = str(error.get("message") or code)
    if code in ("unsupported_file", "invalid_file"):
        return FileError(code=code, message=message)
    return FileError(code=_OTHER, message=f"{message} ({code})")


def batch_object(found: FileBatch) -> FileBatchObject:
    """Return the batch. It has failed only if every file has, and is cancelled when no file is in progress."""
    counts = _counts(found.num_files)
    status: Literal["in_progress", "completed", "cancelling", "cancelled", "failed"] = "completed"
    if found.cancelled_at is not None:
        status = "cancelling" if counts.in_progress else "cancelled"
    elif counts.in_progress:
        status = "in_progress"
    elif counts.total and counts.failed == counts.total:
        status = "failed"
    return FileBatchObject(
        id=found.id,
        created_at=int(found.created_at.timestamp()),
        vector_store_id=found.store_id,
        status=status,
        file_counts=counts,
    )


def content_page(found: Sequence[tuple[int, Passage]], limit: int) -> FileContentPage:
    """Return a page of passages, where ``found`` has up to ``limit + 1`` entries."""
    kept = found[:limit]
    has_more = len(found) > limit
    return FileContentPage(
        data=[PassageText(text=passage.text) for _, passage in kept],
        has_more=has_more,
        next_page=str(kept[-1][0]) if has_more else None,
    )


def search_page(queries: Sequence[str], found: Sequence[FoundPassage]) -> SearchPage:
    """Return the result of a search."""
    return SearchPage(search_query=list(queries), data=[_result(one) for one in found])


def _result(found: FoundPassage) -> SearchResult:
    passage = found.passage
    return SearchResult(
        file_id=found.file_id,
        filename=found.filename,
        score=found.score,
        attributes=found.attributes,
        content=[PassageText(text=passage.text)],
        place=Place(start=passage.start, end=passage.end, page=passage.page),
    )


def page_of(
    read: Callable[..., Sequence[T]],
    show: Callable[[T], Any],
    limit: int,
    after: str | None,
    before: str | None,
    order: str,
) -> dict[str, Any]:
    """Return the fields of a page. ``read``: ``list_stores`` or ``list_files``, which is given where the page is.

    With ``before`` alone the page is the one that ends at it, so it is read from its end.
    """
    is_backwards = before is not None and after is None
    marks = {"after": before} if is_backwards else {"after": after, "before": before}
    found = read(limit=limit + 1, descending=(order == "desc") is not is_backwards, **marks)
    data = [show(one) for one in (found[:limit][::-1] if is_backwards else found[:limit])]
    return {
        "data": data,
        "first_id": data[0].id if data else None,
        "last_id": data[-1].id if data else None,
        "has_more": len(found) > limit,
    }


def _counts(nums: dict[str, int]) -> FileCounts:
    return FileCounts(**{status: nums.get(status, 0) for status in STATUSES}, total=sum(nums.values()))
