"""Vector stores and their files: counts, pages, batches, and the words of refusals."""

import re
import struct
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text

from headrace.features.retrieval import passages, search, store_files, vector_stores
from headrace.features.retrieval.attribute_filters import read_filter
from headrace.features.retrieval.passages import array_of, unit_vector
from headrace.features.retrieval.store_files import NewStoreFile
from headrace.features.retrieval.vector_stores import StoreModel, VectorStore
from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError, InvalidRequest, NotFound
from headrace.store.jobs.claims import claim
from tests.features.retrieval.conftest import WIDTH, AddFile
from tests.refusals import Naming
from tests.store.making import QUEUE, AcceptOne, Query

MODEL = StoreModel("vectors", 1, WIDTH)


def refused(run: Any) -> tuple[str, str | None]:
    with pytest.raises(HeadraceError) as error:
        run()
    return error.value.message, error.value.param


def again(file_id: str, **attributes: str) -> NewStoreFile:
    return NewStoreFile(file_id, attributes, 100, 10)


def test_a_store_is_what_was_asked_for_and_counts_its_files(
    db: Database, tenant: str, other_tenant: str, add_file: AddFile
) -> None:
    vector_stores.create(db, other_tenant, MODEL, name="far")
    first = vector_stores.create(db, tenant, MODEL, name="a", description="b", metadata={"k": "v"}, expires_days=3)
    assert (first.name, first.description, first.metadata, first.expires_days) == ("a", "b", {"k": "v"}, 3)
    assert (first.model, first.model_version, first.dimensions, first.num_files) == ("vectors", 1, WIDTH, {})
    assert first.expires_at is not None
    assert (first.expires_at - first.created_at).days == 3
    second, third = (vector_stores.create(db, tenant, MODEL) for _ in range(2))
    add_file(first, ["häuser", "ab"])
    held = vector_stores.get(db, tenant, first.id)
    assert (held.num_files, held.num_bytes) == ({"completed": 1}, 7 + 2 + 2 * 4 * WIDTH)
    add_file(second, ["a"])
    add_file(second, ["b"])
    assert vector_stores.get(db, tenant, second.id).num_files == {"completed": 2}
    ids = [third.id, second.id, first.id]

    def page(**ends: Any) -> list[str]:
        return [one.id for one in vector_stores.list_stores(db, tenant, **{"limit": 9, **ends})]

    assert page() == ids
    assert page(descending=False) == ids[::-1]
    assert (page(after=ids[0]), page(before=ids[2]), page(limit=1)) == (ids[1:], ids[:2], ids[:1])
    assert page(after=ids[2], descending=False) == [ids[1], ids[0]]
    assert page(before=ids[0], descending=False) == [ids[2], ids[1]]
    renamed = vector_stores.update(db, tenant, first.id, name="c")
    assert (renamed.name, renamed.metadata, renamed.expires_days, renamed.num_bytes) == (
        "c",
        {"k": "v"},
        3,
        held.num_bytes,
    )
    assert vector_stores.update(db, tenant, first.id, metadata={}).metadata == {}
    assert vector_stores.update(db, tenant, first.id, sets_life=True, expires_days=5).expires_days == 5
    missing = (Naming(first.id), None)
    for run in (
        lambda: vector_stores.get(db, other_tenant, first.id),
        lambda: vector_stores.update(db, other_tenant, first.id, name="x"),
        lambda: vector_stores.delete(db, other_tenant, first.id, actor="eve"),
        lambda: store_files.attach(db, other_tenant, first.id, []),
    ):
        assert refused(run) == missing
    vector_stores.delete(db, tenant, first.id, actor="mia")
    (entry, *_) = list_entries(db, tenant)
    assert (entry.actor, entry.action, entry.resource, entry.detail) == ("mia", "vector_store.deleted", first.id, {})


def test_files_are_listed_by_age_batch_and_status(
    db: Database, tenant: str, store: VectorStore, add_file: AddFile, accept_one: AcceptOne, query: Query
) -> None:
    done = add_file(store, ["text"], attributes={"year": 1})
    others = [add_file(store, ["text"]) for _ in range(4)]
    files, batch = store_files.attach(db, tenant, store.id, [again(one) for one in others], as_batch=True)
    assert batch is not None
    assert {(one.status, one.num_passages, one.job_id) for one in files} == {("in_progress", 0, None)}
    jobs = [accept_one() for _ in others[:2]]
    # A job of a file that is not of the batch.
    store_files.note_jobs(db, tenant, {store_files.get(db, tenant, store.id, done).ticket: accept_one()})
    tickets = {one.file_id: one.ticket for one in files}
    store_files.note_jobs(db, tenant, dict(zip((tickets[one] for one in others), jobs, strict=False)))
    query("UPDATE jobs SET state = 'cancelled', completed_at = now() WHERE id = :id", id=jobs[1])
    query("UPDATE vector_store_files SET created_at = created_at - interval '601 s' WHERE file_id = :id", id=others[3])

    def page(**only: Any) -> list[str]:
        return [one.file_id for one in store_files.list_files(db, tenant, store.id, **{"limit": 9, **only})]

    newest = [*reversed(others), done]
    assert page() == newest
    assert page(descending=False) == newest[::-1]
    assert (page(after=newest[1]), page(before=newest[1]), page(limit=2)) == (newest[2:], newest[:1], newest[:2])
    assert page(after=newest[1], descending=False) == [newest[0]]
    assert page(before=newest[3], descending=False) == [done]
    assert page(batch_id=batch) == newest[:4]
    assert {status: page(status=status) for status in store_files.STATUSES} == {
        "in_progress": [others[2], others[0]],
        "completed": [done],
        "failed": [others[3]],
        "cancelled": [others[1]],
    }
    found = store_files.get_batch(db, tenant, store.id, batch)
    assert (found.store_id, found.cancelled_at) == (store.id, None)
    assert found.num_files == {"in_progress": 2, "cancelled": 1, "failed": 1}
    assert store_files.cancel_batch(db, tenant, store.id, batch) == jobs[:1], "the open jobs"
    cancelled = store_files.get_batch(db, tenant, store.id, batch).cancelled_at
    assert cancelled is not None
    assert jobs[0] in claim(db, "w", QUEUE, jobs[:1], 60.0)
    assert store_files.cancel_batch(db, tenant, store.id, batch) == jobs[:1], "also one that runs"
    assert store_files.get_batch(db, tenant, store.id, batch).cancelled_at == cancelled, "the first time"
    one = store_files.get(db, tenant, store.id, done)
    assert (one.filename, one.file_bytes, one.attributes, one.chunk_tokens, one.num_passages) == (
        "a.txt",
        9,
        {"year": 1},
        100,
        1,
    )
    changed = store_files.set_attributes(db, tenant, store.id, done, {"kind": "mill"})
    assert (changed.attributes, store_files.get(db, tenant, store.id, others[0]).attributes) == ({"kind": "mill"}, {})


def test_refusals_of_store_files_name_what_is_missing(
    db: Database, tenant: str, other_tenant: str, store: VectorStore, add_file: AddFile
) -> None:
    file_id = add_file(store, ["text"])
    no_file = (Naming(f"no file {file_id}", store.id), None)
    no_batch = (Naming("no batch vsfb_1", store.id), None)
    for run, said in (
        (lambda: store_files.get(db, other_tenant, store.id, file_id), no_file),
        (lambda: store_files.set_attributes(db, other_tenant, store.id, file_id, {}), no_file),
        (lambda: store_files.detach(db, other_tenant, store.id, file_id, actor="eve"), no_file),
        (lambda: store_files.get_batch(db, tenant, store.id, "vsfb_1"), no_batch),
        (lambda: store_files.cancel_batch(db, tenant, store.id, "vsfb_1"), no_batch),
        (lambda: store_files.attach(db, tenant, store.id, [again("file_x")]), ("no file file_x", "file_id")),
    ):
        assert refused(run) == said
    with pytest.raises(NotFound):
        store_files.attach(db, tenant, store.id, [again(file_id), again("file_x")])
    with db.begin() as connection:
        connection.execute(text("UPDATE files SET expires_at = now() WHERE id = :id"), {"id": file_id})
    assert refused(lambda: store_files.attach(db, tenant, store.id, [again(file_id)])) == (
        f"no file {file_id}",
        "file_id",
    ), "it has expired"
    assert store_files.get(db, tenant, store.id, file_id).status == "completed", "all or none"
    assert store_files.detach(db, tenant, store.id, file_id, actor="mia") is None
    (entry, *_) = list_entries(db, tenant)
    assert (entry.action, entry.resource, entry.detail) == (
        "vector_store.file_removed",
        store.id,
        {"file_id": file_id},
    )
    assert passages.read(db, tenant, store.id, file_id, limit=9) == []


def test_passages_are_read_behind_a_position_and_vectors_have_length_one(
    db: Database, tenant: str, store: VectorStore, add_file: AddFile
) -> None:
    file_id = add_file(store, ["a", "b", "c"])
    found = passages.read(db, tenant, store.id, file_id, after=0, limit=1)
    assert [(position, one.text, one.start, one.end, one.page) for position, one in found] == [(1, "b", 0, 1, None)]
    assert unit_vector(struct.pack("<2f", 3.0, 4.0)) == (0.6, 0.8)
    assert unit_vector(struct.pack("<2f", 0.0, 0.0)) == (0.0, 0.0)
    assert array_of((0.1, -1 / 3, 1e-9)) == "{0.1,-0.333333333,1e-09}"


def test_a_file_of_two_stores_is_one_of_its_own_in_each(
    db: Database, tenant: str, store: VectorStore, add_file: AddFile
) -> None:
    other = vector_stores.create(db, tenant, MODEL)
    file_id = add_file(store, ["mill"], attributes={"at": "first"})
    ((attached,), batch) = store_files.attach(db, tenant, other.id, [again(file_id, at="second")], as_batch=True)
    assert batch is not None
    passage = passages.Passage("the mill", 3, 11, page=2)
    made = passages.FilePassages(attached.ticket, tenant, (passage,), (bytes(4 * WIDTH),))
    with db.begin() as connection:
        made.write(connection, db.seal)

    def found(in_store: VectorStore) -> list[tuple[str, str, dict[str, Any], int | None]]:
        query = search.Query(in_store.id, (1.0, *[0.0] * 15), "mill", 9)
        return [
            (one.file_id, one.passage.text, one.attributes, one.passage.page)
            for one in search.search(db, tenant, query)
        ]

    assert found(store) == [(file_id, "mill", {"at": "first"}, None)]
    assert found(other) == [(file_id, "the mill", {"at": "second"}, 2)]
    store_files.set_attributes(db, tenant, other.id, file_id, {"at": "third"})
    assert store_files.get(db, tenant, store.id, file_id).attributes == {"at": "first"}
    for run in (store_files.get_batch, store_files.cancel_batch):
        said = Naming(f"no batch {batch}", store.id)
        assert refused(partial(run, db, tenant, store.id, batch)) == (said, None)
    assert store_files.get_batch(db, tenant, other.id, batch).num_files == {"completed": 1}
    store_files.detach(db, tenant, other.id, file_id, actor="mia")
    assert (len(found(store)), found(other)) == (1, [])


EQ = {"type": "eq", "key": "a", "value": 1}


def nested(levels: int) -> dict[str, Any]:
    return EQ if levels == 1 else {"type": "and", "filters": [nested(levels - 1)]}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {**EQ, "type": "like"},
            "`filters.type` .*eq, ne, gt, gte, lt, lte, in, nin, and, or",
        ),
        ({**EQ, "key": ""}, "`filters.key` .*attribute"),
        ({**EQ, "key": "k" * 65}, "`filters.key` .*attribute"),
        ({**EQ, "value": None}, "`filters.value` .*text,"),
        ({**EQ, "type": "in"}, "`filters.value` .*list of"),
        ({**EQ, "type": "in", "value": [1, None]}, "`filters.value` .*list of"),
        ({"type": "or", "filters": []}, "`filters.filters` .*list of"),
        ({**EQ, "sql": 1}, "`filters.sql` .*key, type, value "),
        ({"type": "or", "filters": [EQ], "key": "a"}, "`filters.key` .*filters, type "),
        ({"type": "or", "filters": [EQ] * 64}, r"`filters.filters\[63\]` .*64"),
        (nested(9), f"{re.escape('.filters[0]' * 8)}` .* 8 levels"),
    ],
)
def test_a_wrong_filter_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        read_filter(given)


def test_the_largest_filters_are_read() -> None:
    assert read_filter(None) is None
    for given in (nested(8), {"type": "or", "filters": [EQ] * 63}, {**EQ, "key": "k" * 64}):
        assert read_filter(given) is not None
    found = read_filter({"type": "and", "filters": [EQ, {"type": "gt", "key": "b", "value": "x"}]})
    assert found is not None
    assert found.values == {"filter_0": "a", "filter_1": "1", "filter_2": "b", "filter_3": '"x"'}


def test_a_file_that_is_added_again_loses_its_passages_until_they_are_read_anew(
    db: Database, tenant: str, store: VectorStore, add_file: AddFile
) -> None:
    file_id, kept = add_file(store, ["old"], attributes={"year": 1}), add_file(store, ["kept"])
    before = store_files.get(db, tenant, store.id, file_id)
    ((attached,), batch) = store_files.attach(db, tenant, store.id, [again(file_id, kind="mill")])
    assert (attached.status, attached.attributes, attached.overlap_tokens, batch) == (
        "in_progress",
        {"kind": "mill"},
        10,
        None,
    )
    assert attached.ticket > before.ticket
    found = {one: passages.read(db, tenant, store.id, one, limit=9) for one in (file_id, kept)}
    assert [len(of_file) for of_file in found.values()] == [0, 1]
    late = passages.FilePassages(before.ticket, tenant, (passages.Passage("late", 0, 4),), (bytes(4 * WIDTH),))
    with db.begin() as connection:
        late.write(connection, db.seal)
    assert passages.read(db, tenant, store.id, file_id, limit=9) == [], "the job of the first attachment is too late"
