"""The search at the end of a step: which passages of several stores are kept, in which order, and how it asks."""

import json
import struct
from dataclasses import replace
from typing import Any

import pytest

from headrace.features.encoders.embed.inputs import FAKE
from headrace.features.encoders.embed.model import EmbedModel
from headrace.features.retrieval import search, vector_stores
from headrace.features.retrieval.passages import Passage
from headrace.features.retrieval.search import FoundPassage, Query
from headrace.features.retrieval.searched_steps import searched_job, told
from headrace.prompts.tokenizer import ByteTokenizer
from headrace.store.payloads.retrieval import Retrieval
from tests.workers.runs.test_outcome import CLAIM

ANY: Any = None
MODEL = EmbedModel(ANY, ANY, ByteTokenizer(), FAKE)


def output_of(wanted: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The output of a step that searches, whose model has made this vector of its question."""
    payload = {"input": {"texts": ["what is a mill?"]}, "search": wanted, **fields}
    return searched_job(MODEL, replace(CLAIM, payload=payload), ANY).output([struct.pack("<2f", 3.0, 4.0)])


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
    passages = output_of(wanted)["passages"]
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
    output = output_of(wanted)
    assert [one["file_id"] for one in output["passages"]] == ["a"]
    assert (len(output["embeddings"]), output["dimensions"], "text" in output) == (1, 2, False)
    query = stores.asked[1][1]
    assert (query.limit, query.vector_weight, query.word_weight) == (5, 2.0, 0.0)
    assert query.attributes is not None


def test_passages_are_numbered_on_and_one_that_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The room is 160 characters of JSON: the second passage is too long, the third fits into the rest."""
    texts = ["é" * 60, "x" * 200, "mill"]
    passages = [replace(found("a", at, 0.5), passage=Passage(text, 0, 9)) for at, text in enumerate(texts)]
    Stores(monkeypatch, vs_1=passages)
    wanted = {"vector_store_ids": ["vs_1"], "max_context_tokens": 40}
    output = output_of(wanted, numbered_from=4)
    lines = [
        json.dumps({"number": number, "filename": "a.md", "text": text}, ensure_ascii=False)
        for number, text in ((4, texts[0]), (5, texts[2]))
    ]
    assert ([one["text"] for one in output["passages"]], output["numbered_from"]) == ([texts[0], texts[2]], 4)
    assert output["text"] == "\n".join(lines)
    exact = 160 - len(json.dumps({"number": 1, "filename": "a.md", "text": ""}))
    for length, num in ((exact, 1), (exact + 1, 0)):
        one = {"filename": "a.md", "text": "x" * length}
        assert len(told([one], Retrieval.model_validate(wanted), 1)["passages"]) == num
    assert told([], Retrieval.model_validate(wanted), 1)["text"] == "Nothing was found."
