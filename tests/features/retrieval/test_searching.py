"""A search without services: the jobs that it submits, the queries, and the order of results."""

import struct
from base64 import b64encode
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.encoders.embed.inputs import Embedder
from headrace.features.retrieval import searching
from headrace.features.retrieval.passages import Passage
from headrace.features.retrieval.search import FoundPassage, Query
from headrace.features.retrieval.searching import search_store
from headrace.features.retrieval.store_bodies import SearchBody
from headrace.producer_api.submission.draft_job import Origin
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.tenants.api_keys import Principal
from headrace.store.tracing.tracing import TraceContext

PRINCIPAL = Principal("acme", "key_1", frozenset())
TRACE = TraceContext("1" * 32, "2" * 16, True)
ORIGIN = Origin("POST /search", "k", "f", True, 9, "project", None, TRACE)


def passage(file_id: str, position: int, score: float) -> FoundPassage:
    text = f"{file_id} {position}"
    return FoundPassage(file_id, f"{file_id}.md", {}, position, Passage(text, 0, len(text)), score)


class Searching:
    """A store and its models. ``queries``: of the searches; ``jobs``: that were submitted, with their origins."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.queries: list[Query] = []
        self.jobs: list[Any] = []
        self.told: list[Any] = []
        self.found: dict[str, list[FoundPassage]] = {}
        self.ranks: list[tuple[int, float]] = []
        self.error: InvalidRequest | None = None
        self.has_left = False
        self.embedder = Embedder(512, 2)
        stored = SimpleNamespace(id="vs_1", model="vectors", model_version=3)

        def find(db: object, *of: str) -> Any:
            self.told.append(("find", *of))
            return stored

        stores = SimpleNamespace(find=find, touch=lambda db, *of: self.told.append(("touch", *of)))
        patch.setattr(searching, "vector_stores", stores)
        patch.setattr(searching, "search", SimpleNamespace(search=self.search))
        patch.setattr(searching, "submit_and_wait", self.submit)
        patch.setattr(searching, "store_version", lambda runtime, principal, store: store)
        patch.setattr(searching, "answer_of", lambda job: job)
        threads = SimpleNamespace(run=self.run)
        self.runtime: Any = SimpleNamespace(
            db=None,
            submissions=SimpleNamespace(tenant_threads=threads),
            catalog=SimpleNamespace(task_settings=lambda version: self.embedder),
        )

    async def run(self, tenant_id: str, call: Any) -> Any:
        self.told.append(("thread", tenant_id))
        return call()

    def search(self, db: object, tenant_id: str, query: Query) -> list[FoundPassage]:
        assert tenant_id == "acme"
        self.queries.append(query)
        return self.found.get(query.words, [])

    async def submit(
        self, runtime: Any, request: Any, principal: Any, order: Any, origin: Any, *, is_kept: bool
    ) -> Any:
        self.jobs.append((order, origin, principal, is_kept))
        if self.error is not None:
            raise self.error
        if self.has_left:
            return None
        if order.task == "rerank":
            results = [{"index": index, "relevance_score": score} for index, score in self.ranks]
            return SimpleNamespace(job={"results": results})
        vectors = [b64encode(struct.pack("<2f", 3.0, 4.0)).decode() for _ in order.input.texts]
        return SimpleNamespace(job={"embeddings": vectors})

    async def results(self, **fields: Any) -> list[tuple[str, float]] | None:
        nothing: Any = None
        body = SearchBody.model_validate({"query": "mill", **fields})
        found = await search_store(self.runtime, nothing, PRINCIPAL, "vs_1", body, ORIGIN)
        return None if found is None else [(one.passage.text, one.score) for one in found]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Searching:
    return Searching(monkeypatch)


async def test_a_question_is_embedded_by_a_job_that_no_retry_finds(world: Searching) -> None:
    world.embedder = Embedder(512, 2, prompts={"query": "query: "})
    filters = {"type": "eq", "key": "year", "value": 2026}
    weights = {"embedding_weight": 0.25, "text_weight": 2.0}
    assert await world.results(filters=filters, ranking_options={"hybrid_search": weights}, max_num_results=7) == []
    ((order, origin, principal, is_kept),) = world.jobs
    assert (order.model, order.input.texts, order.truncate) == ("vectors@3", ("mill",), True)
    assert (order.service_class, order.prompt_name) == (ServiceClass.INTERACTIVE, "query")
    assert origin == Origin("POST /search", None, "", False, 9, "project", None, TRACE)
    assert (principal, is_kept) == (PRINCIPAL, False)
    (query,) = world.queries
    assert query.vector == pytest.approx((0.6, 0.8))
    assert (query.store_id, query.words, query.limit, query.is_exact) == ("vs_1", "mill", 7, False)
    assert (query.vector_weight, query.word_weight) == (0.25, 2.0)
    assert query.attributes is not None
    assert world.told == [("find", "acme", "vs_1"), ("thread", "acme"), ("touch", "acme", "vs_1")]
    await world.results()
    assert (world.queries[1].limit, world.queries[1].attributes) == (10, None)
    assert (world.queries[1].vector_weight, world.queries[1].word_weight) == (1.0, 1.0)


async def test_a_passage_of_several_questions_has_its_best_score(world: Searching) -> None:
    world.found = {
        "mill": [passage("b", 1, 0.5), passage("a", 1, 0.2), passage("a", 2, 0.5)],
        "wheel": [passage("a", 1, 0.9), passage("b", 1, 0.1), passage("c", 0, 0.4)],
    }
    both = ["mill", "wheel"]
    assert await world.results(query=both) == [("a 1", 0.9), ("a 2", 0.5), ("b 1", 0.5), ("c 0", 0.4)]
    assert await world.results(query=both, max_num_results=2) == [("a 1", 0.9), ("a 2", 0.5)]
    least = await world.results(query=both, ranking_options={"score_threshold": 0.5})
    assert least == [("a 1", 0.9), ("a 2", 0.5), ("b 1", 0.5)]


async def test_a_rerank_model_orders_the_best_fifty_and_its_scores_are_bounded(world: Searching) -> None:
    world.found = {"mill": [passage("a", number, 1 - number / 100) for number in range(60)]}
    world.ranks = [(2, 7.0), (0, 0.5), (1, -3.0)]
    ranker = {"ranker": "reranker"}
    assert await world.results(ranking_options=ranker) == [("a 2", 1.0), ("a 0", 0.5), ("a 1", 0.0)]
    assert await world.results(ranking_options=ranker, max_num_results=1) == [("a 2", 1.0)]
    order, origin, _, is_kept = world.jobs[1]
    assert (order.model, order.input.query, order.truncate, is_kept) == ("reranker", "mill", True, False)
    assert (order.service_class, origin.idempotency_key) == (ServiceClass.INTERACTIVE, None)
    assert [*order.input.documents] == [f"a {number}" for number in range(50)]
    assert world.queries[0].limit == 50
    world.found, num_jobs = {}, len(world.jobs)
    assert await world.results(ranking_options=ranker) == []
    assert len(world.jobs) == num_jobs + 1, "without passages there is nothing to order"


async def test_a_caller_who_leaves_gets_nothing_and_a_refusal_names_its_field(world: Searching) -> None:
    for param, shown in (("input.texts[0]", "query"), ("input", "query"), ("model", "model"), (None, None)):
        world.error = InvalidRequest("too long", param=param)
        with pytest.raises(InvalidRequest) as refused:
            await world.results()
        assert refused.value.param == shown
    world.error, world.has_left = None, True
    assert await world.results() is None
    assert world.queries == []
