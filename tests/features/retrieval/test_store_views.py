"""Vector stores as clients see them, field by field, and the bounds of the bodies they send. No server."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from headrace.features.retrieval.passages import Passage
from headrace.features.retrieval.search import FoundPassage
from headrace.features.retrieval.store_bodies import (
    ChunkingStrategy,
    FileChanges,
    NewFileBatch,
    NewStore,
    NewStoreFileBody,
    SearchBody,
    StoreLife,
)
from headrace.features.retrieval.store_files import FileBatch, StoreFile
from headrace.features.retrieval.store_views import (
    batch_object,
    content_page,
    file_object,
    search_page,
    store_object,
)
from headrace.features.retrieval.vector_stores import VectorStore
from tests.refusals import Naming

AT = datetime(2026, 11, 25, tzinfo=UTC)


def store(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "id": "vs_1",
        "tenant_id": "t",
        "name": "Handbook",
        "description": "d",
        "metadata": {"a": "b"},
        "model": "m",
        "model_version": 3,
        "dimensions": 8,
        "expires_days": 2,
        "created_at": AT,
        "last_active_at": AT + timedelta(seconds=5),
        "expires_at": AT + timedelta(days=2),
        "num_files": {"completed": 2, "failed": 1},
        "num_bytes": 70,
    }
    return store_object(VectorStore(**fields | changes)).model_dump()


def file(**changes: Any) -> StoreFile:
    fields: dict[str, Any] = {
        "store_id": "vs_1",
        "file_id": "file_1",
        "tenant_id": "t",
        "ticket": "tk",
        "job_id": "job_1",
        "status": "completed",
        "num_passages": 3,
        "num_bytes": 70,
        "attributes": {"year": 2026},
        "chunk_tokens": 20,
        "overlap_tokens": 5,
        "created_at": AT,
        "filename": "a.md",
        "file_bytes": 90,
        "error": None,
    }
    return StoreFile(**fields | changes)


def batch(is_cancelled: bool, **counts: int) -> dict[str, Any]:
    return batch_object(FileBatch("vsfb_1", "vs_1", AT, AT if is_cancelled else None, counts)).model_dump()


def test_a_store() -> None:
    assert store() == {
        "id": "vs_1",
        "object": "vector_store",
        "created_at": 1795564800,
        "name": "Handbook",
        "description": "d",
        "model": "m@3",
        "usage_bytes": 70,
        "file_counts": {"in_progress": 0, "completed": 2, "failed": 1, "cancelled": 0, "total": 3},
        "status": "completed",
        "expires_after": {"anchor": "last_active_at", "days": 2},
        "expires_at": 1795737600,
        "last_active_at": 1795564805,
        "metadata": {"a": "b"},
    }
    waiting = store(num_files={"in_progress": 1, "completed": 1}, expires_days=None, expires_at=None)
    assert {name: waiting[name] for name in ("status", "expires_after", "expires_at")} == {
        "status": "in_progress",
        "expires_after": None,
        "expires_at": None,
    }


def test_a_file() -> None:
    assert file_object(file()).model_dump() == {
        "id": "file_1",
        "object": "vector_store.file",
        "created_at": 1795564800,
        "vector_store_id": "vs_1",
        "usage_bytes": 70,
        "status": "completed",
        "last_error": None,
        "chunking_strategy": {"type": "static", "static": {"max_chunk_size_tokens": 20, "chunk_overlap_tokens": 5}},
        "attributes": {"year": 2026.0},
        "job_id": "job_1",
    }
    errors = [
        file_object(file(status="failed", error=error)).last_error
        for error in (None, {"code": "invalid_file", "message": "damaged"}, {"code": "out_of_memory"})
    ]
    assert [error and error.model_dump() for error in errors] == [
        {"code": "server_error", "message": Naming("job_lost")},
        {"code": "invalid_file", "message": "damaged"},
        {"code": "server_error", "message": "out_of_memory (out_of_memory)"},
    ]
    assert file_object(file(error={"code": "x"})).last_error is None


@pytest.mark.parametrize(
    ("is_cancelled", "counts", "status"),
    [
        (False, {"in_progress": 1, "failed": 1}, "in_progress"),
        (True, {"in_progress": 1, "completed": 1}, "cancelling"),
        (True, {"completed": 1, "cancelled": 1}, "cancelled"),
        (False, {"failed": 2}, "failed"),
        (False, {"failed": 1, "completed": 1}, "completed"),
        (False, {}, "completed"),
    ],
)
def test_the_status_of_a_batch(is_cancelled: bool, counts: dict[str, int], status: str) -> None:
    found = batch(is_cancelled, **counts)
    assert (found["status"], found["file_counts"]["total"]) == (status, sum(counts.values()))


def test_a_batch() -> None:
    assert batch(False, completed=2, failed=1) == {
        "id": "vsfb_1",
        "object": "vector_store.files_batch",
        "created_at": 1795564800,
        "vector_store_id": "vs_1",
        "status": "completed",
        "file_counts": {"in_progress": 0, "completed": 2, "failed": 1, "cancelled": 0, "total": 3},
    }


def test_pages_of_the_text_of_a_file() -> None:
    texts = [(number, Passage(f"p{number}", 0, 2)) for number in (4, 5, 7)]
    assert content_page(texts, 2).model_dump() == {
        "object": "vector_store.file_content.page",
        "data": [{"type": "text", "text": "p4"}, {"type": "text", "text": "p5"}],
        "has_more": True,
        "next_page": "5",
    }
    assert content_page(texts, 3).model_dump() == {
        "object": "vector_store.file_content.page",
        "data": [{"type": "text", "text": "p4"}, {"type": "text", "text": "p5"}, {"type": "text", "text": "p7"}],
        "has_more": False,
        "next_page": None,
    }


def test_a_result_of_a_search() -> None:
    found = FoundPassage("file_1", "a.md", {"year": 2026}, 4, Passage("text", 10, 14, 2), 0.5)
    assert search_page(("one", "two"), [found]).model_dump() == {
        "object": "vector_store.search_results.page",
        "search_query": ["one", "two"],
        "data": [
            {
                "file_id": "file_1",
                "filename": "a.md",
                "score": 0.5,
                "attributes": {"year": 2026.0},
                "content": [{"type": "text", "text": "text"}],
                "place": {"start": 10, "end": 14, "page": 2},
            }
        ],
        "has_more": False,
        "next_page": None,
    }


STATIC = {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 50}
FILE = {"file_id": "file_1"}
WITHIN_BOUNDS: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (StoreLife, {"anchor": "last_active_at", "days": 1}),
    (StoreLife, {"anchor": "last_active_at", "days": 365}),
    (ChunkingStrategy, {"type": "static", "static": STATIC}),
    (ChunkingStrategy, {"type": "auto"}),
    (NewStore, {"name": "x" * 256, "description": "x" * 512, "file_ids": ["file_1"] * 500}),
    (NewStoreFileBody, FILE | {"attributes": {"k" * 64: "x" * 512, "n": 1, "is": True}}),
    (NewFileBatch, {"files": [FILE] * 500}),
    (FileChanges, {"attributes": None}),
    (SearchBody, {"query": "x" * 16_384, "max_num_results": 50}),
    (SearchBody, {"query": ["x"] * 16, "max_num_results": 1}),
]
OUT_OF_BOUNDS: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (StoreLife, {"anchor": "last_active_at", "days": 0}),
    (StoreLife, {"anchor": "last_active_at", "days": 366}),
    (StoreLife, {"anchor": "created_at", "days": 1}),
    (ChunkingStrategy, {"type": "static"}),
    (ChunkingStrategy, {"type": "auto", "static": STATIC}),
    (ChunkingStrategy, {"type": "static", "static": STATIC | {"chunk_overlap_tokens": 51}}),
    (ChunkingStrategy, {"type": "static", "static": STATIC | {"chunk_overlap_tokens": -1}}),
    (NewStore, {"name": "x" * 257}),
    (NewStore, {"description": "x" * 513}),
    (NewStore, {"file_ids": ["file_1"] * 501}),
    (NewStoreFileBody, FILE | {"attributes": {"k" * 65: "x"}}),
    (NewStoreFileBody, FILE | {"attributes": {"": "x"}}),
    (NewStoreFileBody, FILE | {"attributes": {"k": "x" * 513}}),
    (NewStoreFileBody, FILE | {"attributes": {"k": float("inf")}}),
    (NewStoreFileBody, FILE | {"attributes": {f"{n}": 1 for n in range(17)}}),
    (NewStoreFileBody, {"file_id": ""}),
    (NewStoreFileBody, {"file_id": "x" * 101}),
    (NewFileBatch, {"files": [FILE], "file_ids": ["file_1"]}),
    (NewFileBatch, {"files": [], "file_ids": []}),
    (NewFileBatch, {"files": [FILE] * 501}),
    (FileChanges, {}),
    (SearchBody, {"query": ""}),
    (SearchBody, {"query": "x" * 16_385}),
    (SearchBody, {"query": []}),
    (SearchBody, {"query": ["x"] * 17}),
    (SearchBody, {"query": "x", "max_num_results": 0}),
    (SearchBody, {"query": "x", "max_num_results": 51}),
]


def test_bodies_within_their_bounds_are_accepted() -> None:
    for kind, body in WITHIN_BOUNDS:
        assert kind.model_validate(body).model_fields_set == body.keys()


def test_bodies_outside_their_bounds_are_refused(subtests: pytest.Subtests) -> None:
    for number, (kind, body) in enumerate(OUT_OF_BOUNDS):
        with subtests.test(kind.__name__, number=number), pytest.raises(ValidationError):
            kind.model_validate(body)


def test_the_defaults_of_a_search() -> None:
    search = SearchBody(query="x")
    assert (search.max_num_results, search.queries, search.filters) == (10, ("x",), None)
    assert SearchBody(query=("x", "y")).queries == ("x", "y")


def test_the_files_of_a_batch_are_each_there_once() -> None:
    shared = NewFileBatch(
        file_ids=("a", "b", "a"), attributes={"n": 1}, chunking_strategy=ChunkingStrategy(type="auto")
    )
    assert [one.model_dump(exclude_none=True) for one in shared.entries] == [
        {"file_id": "a", "attributes": {"n": 1.0}, "chunking_strategy": {"type": "auto"}},
        {"file_id": "b", "attributes": {"n": 1.0}, "chunking_strategy": {"type": "auto"}},
    ]
    own = NewFileBatch.model_validate(
        {"files": [{"file_id": "a", "attributes": {"n": 1}}, {"file_id": "b"}, {"file_id": "a"}]}
    )
    assert [one.model_dump(exclude_none=True) for one in own.entries] == [{"file_id": "a"}, {"file_id": "b"}]
