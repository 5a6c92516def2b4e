"""Searches: exact ones against an oracle in Python, with the extension and without; indexes; filters; tenants."""

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from headrace.features.retrieval import passages, search, vector_stores
from headrace.features.retrieval.attribute_filters import read_filter
from headrace.features.retrieval.search import Query, fused
from headrace.features.retrieval.vector_stores import StoreModel, VectorStore
from headrace.migrations import vector_indexes
from headrace.migrations.drift import find_drift
from headrace.store.db.database import Database
from headrace.store.db.roles import API
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.settings import Settings
from tests.features.retrieval.conftest import WIDTH, AddFile, random_vector
from tests.roles import role_url
from tests.sealing import TurnedSeal
from tests.store.making import Query as Rows

NUM_PASSAGES = 400


@pytest.fixture
def vectors(store: VectorStore, add_file: AddFile) -> dict[tuple[str, int], tuple[float, ...]]:
    """A store of random vectors, by the keys of their passages."""
    rng = random.Random(1)
    found = [random_vector(rng) for _ in range(NUM_PASSAGES)]
    file_id = add_file(store, [f"passage {n}" for n in range(NUM_PASSAGES)], vectors=found)
    return {(file_id, position): vector for position, vector in enumerate(found)}


def keys(db: Database, store: VectorStore, query: Query) -> list[tuple[str, int]]:
    return [(one.file_id, one.position) for one in search.search(db, store.tenant_id, query)]


def test_all_passages_of_a_long_file_are_there(
    db: Database, store: VectorStore, vectors: dict[tuple[str, int], tuple[float, ...]]
) -> None:
    ((file_id, _), *_) = vectors
    found = passages.read(db, store.tenant_id, store.id, file_id, limit=2 * NUM_PASSAGES)
    assert [(position, one.text) for position, one in found] == [(n, f"passage {n}") for n in range(NUM_PASSAGES)]


def test_an_exact_search_finds_the_nearest_with_the_extension_and_without(
    db: Database,
    store: VectorStore,
    vectors: dict[tuple[str, int], tuple[float, ...]],
    add_file: AddFile,
    tenant: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    neighbour = vector_stores.create(db, tenant, StoreModel("vectors", 1, WIDTH))
    rng = random.Random(2)
    asked = [random_vector(rng) for _ in range(5)]
    add_file(neighbour, ["neighbour"] * 5, vectors=asked)  # nearer than all others, and of another store

    def found() -> list[list[tuple[str, int]]]:
        return [keys(db, store, Query(store.id, one, "", 10, word_weight=0, is_exact=True)) for one in asked]

    def cosine(key: tuple[str, int], one: tuple[float, ...]) -> float:
        return sum(a * b for a, b in zip(vectors[key], one, strict=True))

    oracle = [sorted(vectors, key=lambda key: -cosine(key, one))[:10] for one in asked]
    assert found() == oracle
    monkeypatch.setattr(search, "has_extension", lambda _connection: False)
    assert found() == oracle


def test_an_index_finds_what_an_exact_search_finds(
    db: Database, store: VectorStore, vectors: dict[tuple[str, int], tuple[float, ...]]
) -> None:
    assert vectors
    assert vector_indexes.refresh(db) == [], "the store is small"
    assert vector_indexes.refresh(db, fewest=1) == [f"built hnsw_{store.id}"]
    assert vector_indexes.refresh(db, fewest=1) == []
    assert find_drift(db) == []
    rng = random.Random(3)
    queries = [Query(store.id, random_vector(rng), "", 10, word_weight=0) for _ in range(20)]
    common = sum(len({*keys(db, store, one)} & {*keys(db, store, replace(one, is_exact=True))}) for one in queries)
    assert common >= 0.98 * 10 * len(queries)
    vector_stores.delete(db, store.tenant_id, store.id, actor="tests")
    assert vector_indexes.refresh(db, fewest=1) == [f"dropped hnsw_{store.id}"]


def test_words_and_vectors_are_fused_by_their_ranks(db: Database, store: VectorStore, add_file: AddFile) -> None:
    both, near, said = ([1.0] + [0.0] * 15, [0.9, 0.1] + [0.0] * 14, [0.0, 1.0] + [0.0] * 14)
    file_id = add_file(
        store, ["The mill stands by the river.", "Nothing of it.", "A mill, a mill."], vectors=[both, near, said]
    )
    query = Query(store.id, (1.0, *[0.0] * 15), "Where are mills?", 10)
    assert keys(db, store, query)[0] == (file_id, 0), "first by vector, and found by a word"
    assert keys(db, store, replace(query, vector_weight=0)) == [(file_id, 2), (file_id, 0)]
    assert keys(db, store, replace(query, word_weight=0)) == [(file_id, 0), (file_id, 1), (file_id, 2)]
    alternatives = replace(query, vector_weight=0, words="a castle or a mill")
    assert keys(db, store, alternatives) == [(file_id, 2), (file_id, 0)], "a question has words that no answer has"
    assert keys(db, store, replace(query, words="the of it")) == keys(db, store, replace(query, word_weight=0))
    assert fused([([("a", 0), ("b", 0)], 1.0), ([("a", 0)], 1.0)]) == {
        ("a", 0): pytest.approx(1.0),
        ("b", 0): pytest.approx(6 / 7 / 2),
    }
    # The half that counts more decides.
    assert keys(db, store, replace(query, word_weight=9.0))[0] == (file_id, 2)
    assert keys(db, store, replace(query, vector_weight=9.0))[0] == (file_id, 0)
    weighted = fused([([("a", 0), ("b", 0)], 3.0), ([("b", 0)], 1.0)])
    assert weighted == {("a", 0): pytest.approx(3 / 4), ("b", 0): pytest.approx((3 * 6 / 7 + 1) / 4)}


def test_the_best_of_one_half_comes_before_what_is_far_down_in_both() -> None:
    both = [(f"both {number}", 0) for number in range(9)]
    scores = fused([([("near", 0), *both], 1.0), ([("said", 0), *both], 1.0)])
    assert scores["both 0", 0] > scores["near", 0] == scores["said", 0] > scores["both 8", 0]


def eq(key: str, value: object) -> dict[str, Any]:
    return {"type": "eq", "key": key, "value": value}


FILTERS: list[tuple[dict[str, Any], str]] = [
    (eq("year", 1840), "a"),
    (eq("year", 1840.0), "a"),
    (eq("year", "1840"), ""),
    ({"type": "ne", "key": "kind", "value": "mill"}, "bc"),
    ({"type": "gt", "key": "year", "value": 1840}, "b"),
    ({"type": "gte", "key": "year", "value": 1840}, "ab"),
    ({"type": "lt", "key": "year", "value": 1900}, "a"),
    ({"type": "lte", "key": "kind", "value": "mill"}, "ab"),
    ({"type": "in", "key": "kind", "value": ["mill", "x"]}, "a"),
    ({"type": "nin", "key": "kind", "value": ["mill", "x"]}, "bc"),
    (
        {
            "type": "and",
            "filters": [eq("open", True), {"type": "or", "filters": [eq("kind", "mill"), eq("kind", "bakery")]}],
        },
        "b",
    ),
    ({"type": "or", "filters": [eq("kind", "mill"), eq("kind", "bakery")]}, "ab"),
    (
        {
            "type": "and",
            "filters": [eq("open", True), {"type": "or", "filters": [eq("kind", "bakery"), eq("kind", "mill")]}],
        },
        "b",
    ),
    (eq("'; DROP TABLE files; --", "x"), ""),
]


def test_filters_choose_files_by_their_attributes(db: Database, store: VectorStore, add_file: AddFile) -> None:
    ids = {
        "a": add_file(store, ["text"], attributes={"year": 1840, "kind": "mill", "open": False}),
        "b": add_file(store, ["text"], attributes={"year": 2026, "kind": "bakery", "open": True}),
        "c": add_file(store, ["text"]),
    }
    query = Query(store.id, (1.0, *[0.0] * 15), "text", 10)
    for given, expected in FILTERS:
        found = keys(db, store, replace(query, attributes=read_filter(given)))
        assert {key[0] for key in found} == {ids[name] for name in expected}, given


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"type": "like", "key": "a", "value": "b"}, "filters.type"),
        (eq("", 1), "filters.key"),
        (eq("a", None), "filters.value"),
        ({"type": "in", "key": "a", "value": "b"}, "filters.value"),
        ({"type": "nin", "key": "a", "value": []}, "filters.value"),
        ({"type": "and", "filters": [eq("a", 1), {"type": "or", "filters": []}]}, "filters.filters[1].filters"),
        ({**eq("a", 1), "sql": "1"}, "filters.sql"),
        ({"type": "or", "filters": [eq("a", 1)] * 64}, "filters.filters[63]"),
    ],
)
def test_a_wrong_filter_is_refused_with_its_place(given: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_filter(given)
    assert refused.value.param == param


@pytest.fixture
def api(settings: Settings) -> Iterator[Database]:
    database = Database(role_url(settings.database_url, API), pool_size=1, application_name="tests")
    yield database
    database.close()


def test_the_apis_role_finds_nothing_of_another_tenant(
    api: Database, db: Database, store: VectorStore, add_file: AddFile, tenant: str, other_tenant: str
) -> None:
    file_id = add_file(store, ["the mill"])
    query = Query(store.id, (1.0, *[0.0] * 15), "mill", 10)
    assert len(search.search(api, tenant, query)) == 1
    assert search.search(api, other_tenant, query) == []
    assert search.search(db, other_tenant, query) == [], "also without row-level security"
    for at in (api, db):
        assert passages.read(at, other_tenant, store.id, file_id, limit=9) == []
    with pytest.raises(NotFound):
        vector_stores.get(api, other_tenant, store.id)


def test_a_sealed_passage_is_found_and_shows_no_order_of_words(
    settings: Settings, store: VectorStore, add_file: AddFile, query: Rows
) -> None:
    sealed = Database(settings.database_url, application_name="tests", seal=TurnedSeal("k1"))
    file_id = add_file(store, ["water leads the mill"], db=sealed)
    (found,) = search.search(sealed, store.tenant_id, Query(store.id, (1.0, *[0.0] * 15), "mill", 10))
    sealed.close()
    assert (found.file_id, found.passage.text) == (file_id, "water leads the mill")
    (row,) = query("SELECT content::text AS content, terms::text AS terms FROM vector_store_passages")
    assert "water" not in row["content"]
    assert row["terms"] == "'lead' 'mill' 'water'"


def test_a_store_expires_so_long_after_its_last_use(
    db: Database, store: VectorStore, add_file: AddFile, tenant: str, query: Rows
) -> None:
    kept, used, ended = (
        vector_stores.create(db, tenant, StoreModel("vectors", 1, WIDTH), expires_days=7) for _ in range(3)
    )
    for one in (store, ended):
        add_file(one, ["text"])
    query("UPDATE vector_stores SET expires_at = now() - interval '1 s' WHERE id = :id", id=ended.id)
    # The last use was six days ago; and just now, so that another one need not be noted.
    query(
        "UPDATE vector_stores SET last_active_at = now() - interval '6 days', expires_at = now() + interval '1 day' "
        "WHERE id = :id",
        id=used.id,
    )
    for one in (store, kept, used, ended):
        vector_stores.touch(db, tenant, one.id)
    found = {one.id: one for one in vector_stores.list_stores(db, tenant, limit=9)}
    assert set(found) == {store.id, kept.id, used.id}
    assert found[store.id].expires_at is None
    assert found[kept.id] == kept
    renewed = found[used.id]
    assert renewed.expires_at == renewed.last_active_at + timedelta(days=7)
    assert renewed.last_active_at > used.last_active_at
    with pytest.raises(NotFound):
        vector_stores.get(db, tenant, ended.id)
    with pytest.raises(NotFound):
        vector_stores.update(db, tenant, ended.id, sets_life=True)
    while vector_stores.remove_ended(db):
        pass
    assert {row["id"] for row in query("SELECT id FROM vector_stores")} == set(found)
    assert [row["store_id"] for row in query("SELECT store_id FROM vector_store_passages")] == [store.id]
    unlimited = vector_stores.update(db, tenant, used.id, sets_life=True)
    assert (unlimited.expires_days, unlimited.expires_at) == (None, None)


def test_a_deleted_store_is_removed_in_steps_and_no_other(
    db: Database, store: VectorStore, add_file: AddFile, tenant: str, query: Rows
) -> None:
    add_file(store, ["one", "two", "three"])
    kept = vector_stores.create(db, tenant, StoreModel("vectors", 1, WIDTH))
    add_file(kept, ["four"])
    assert not vector_stores.remove_ended(db)
    vector_stores.delete(db, tenant, store.id, actor="tests")
    with pytest.raises(NotFound):
        vector_stores.get(db, tenant, store.id)
    steps = 0
    while vector_stores.remove_ended(db, limit=2):
        steps += 1
    assert steps == 2
    assert [row["store_id"] for row in query("SELECT store_id FROM vector_store_passages")] == [kept.id]
    assert [row["id"] for row in query("SELECT id FROM vector_stores")] == [kept.id]
    assert len(query("SELECT FROM files")) == 2, "files stay"


def test_a_search_returns_as_many_as_it_is_asked_for_with_scores_from_0_to_1(
    db: Database, store: VectorStore, add_file: AddFile
) -> None:
    ahead, behind = (1.0, *[0.0] * 15), (-1.0, *[0.0] * 15)
    file_id = add_file(store, [f"mill {n}" for n in range(60)], vectors=[ahead] * 59 + [behind])
    by_vector = Query(store.id, ahead, "", 60, word_weight=0)
    found = search.search(db, store.tenant_id, by_vector)
    assert [one.position for one in found] == list(range(60)), "more than the usual candidates"
    assert (found[0].score, found[-1].score, found[0].filename) == (pytest.approx(1.0), 0.0, "a.txt")
    assert len(search.search(db, store.tenant_id, replace(by_vector, limit=3))) == 3
    only_words = Query(store.id, ahead, "mill", 60, vector_weight=0)
    assert len(keys(db, store, only_words)) == 60
    assert keys(db, store, replace(only_words, words="  ")) == []
    assert {key[0] for key in keys(db, store, only_words)} == {file_id}


def test_a_short_passage_with_the_word_comes_before_a_long_one(
    db: Database, store: VectorStore, add_file: AddFile
) -> None:
    long = "mill " + " ".join(f"word{n}" for n in range(200))
    file_id = add_file(store, [long, "the mill turns"])
    query = Query(store.id, (1.0, *[0.0] * 15), "mill", 9, vector_weight=0)
    assert keys(db, store, query) == [(file_id, 1), (file_id, 0)]


def test_a_use_is_noted_once_a_minute(db: Database, tenant: str, query: Rows) -> None:
    for age_s, is_noted in ((10, False), (70, True)):
        one = vector_stores.create(db, tenant, StoreModel("vectors", 1, WIDTH), expires_days=7)
        query(
            "UPDATE vector_stores SET last_active_at = now() - make_interval(secs => :s) WHERE id = :id",
            s=age_s,
            id=one.id,
        )
        before = vector_stores.get(db, tenant, one.id).last_active_at
        vector_stores.touch(db, tenant, one.id)
        assert (vector_stores.get(db, tenant, one.id).last_active_at > before) is is_noted


def test_a_store_is_found_without_a_read_of_its_files(db: Database, tenant: str, store: VectorStore) -> None:
    with db.begin() as holder:
        holder.execute(text("LOCK TABLE vector_store_files IN ACCESS EXCLUSIVE MODE"))
        assert vector_stores.find(db, tenant, store.id).dimensions == WIDTH
