"""The search at the end of a step: which passages of several stores are kept, in which order, and how it asks."""

import struct
from base64 import b64encode
from dataclasses import replace
from typing import Any

import pytest

from headrace.store.jobs.claims import Finish
from headrace.store.retrieval import search, vector_stores
from headrace.store.retrieval.passages import Passage
from headrace.store.retrieval.search import FoundPassage, Query
from headrace.store.schema.job_states import JobState
from headrace.workers.runs.retrieval import with_found
from tests.workers.runs.test_outcome import CLAIM

ANY: Any = None
VECTOR = b64encode(struct.pack("<2f", 3.0, 4.0)).decode()
DONE = Finish("job_1", 1, JobState.SUCCEEDED, {"embeddings": [VECTOR], "dimensions": 2}, None, None)
STEP = replace(CLAIM, payload={"input": {"texts": ["what is a mill?"]}})


def found(file: str, position: int, score: float, page: int | None = None) -> FoundPassage:
    return FoundPassage(
        file, f"{file}.md", {}, position, Passage(f"{file}{position}", position, position + 9, page), score
    )


class Stores:
    """Two vector stores with what a search finds in each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **passages: list[FoundPassage]) -> None:
        self._passages = passages
        self.asked: list[Any] = []
        monkeypatch.setattr(vector_stores, "find", lambda _db, tenant, store: self.asked.append((tenant, store)))
        monkeypatch.setattr(search, "search", self.search)

    def search(self, _db: Any, tenant_id: str, query: Query) -> list[FoundPassage]:
        self.asked.append((tenant_id, query))
        return self._passages[query.store_id]


def test_the_best_passages_of_all_stores_are_kept_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [found("b", 1, 0.5), found("a", 2, 0.5), found("c", 1, 0.25)]
    second = [found("c", 1, 0.75, page=3), found("a", 1, 0.5), found("d", 1, 0.125)]
    stores = Stores(monkeypatch, vs_1=first, vs_2=second)
    wanted = {"vector_store_ids": ["vs_1", "vs_2"], "max_num_results": 4}
    passages = (with_found(ANY, STEP, wanted, DONE).output or {})["passages"]
    assert passages == [
        {"file_id": "c", "filename": "c.md", "text": "c1", "score": 0.75, "place": {"start": 1, "end": 10, "page": 3}},
        {"file_id": "a", "filename": "a.md", "text": "a1", "score": 0.5, "place": {"start": 1, "end": 10}},
        {"file_id": "a", "filename": "a.md", "text": "a2", "score": 0.5, "place": {"start": 2, "end": 11}},
        {"file_id": "b", "filename": "b.md", "text": "b1", "score": 0.5, "place": {"start": 1, "end": 10}},
    ]
    near: Any = (pytest.approx(0.6), pytest.approx(0.8))
    query = Query("vs_1", near, "what is a mill?", 4)
    assert stores.asked == [
        ("ten_1", "vs_1"),
        ("ten_1", query),
        ("ten_1", "vs_2"),
        ("ten_1", replace(query, store_id="vs_2")),
    ]


def test_the_options_of_a_search_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stores = Stores(monkeypatch, vs_1=[found("a", 1, 0.5), found("b", 1, 0.4999)])
    options = {"score_threshold": 0.5, "hybrid_search": {"embedding_weight": 2, "text_weight": 0}}
    wanted = {"vector_store_ids": ["vs_1"], "ranking_options": options}
    wanted["filters"] = {"type": "eq", "key": "author", "value": "Ulla"}
    output = with_found(ANY, STEP, wanted, DONE).output or {}
    assert [one["file_id"] for one in output["passages"]] == ["a"]
    assert (output["embeddings"], output["dimensions"]) == ([VECTOR], 2)
    query = stores.asked[1][1]
    assert (query.limit, query.vector_weight, query.word_weight) == (5, 2.0, 0.0)
    assert query.attributes is not None


def test_a_step_that_did_not_succeed_searches_nothing() -> None:
    for finish in (replace(DONE, state=JobState.CANCELLED), replace(DONE, output=None)):
        assert with_found(ANY, STEP, {"vector_store_ids": ["vs_1"]}, finish) is finish
