"""The duty of the leading API process: deleted vector stores are removed."""

from typing import Any

from headrace.features.retrieval import vector_stores
from headrace.features.retrieval.api import PART
from headrace.features.retrieval.vector_stores import StoreModel
from headrace.store.db.database import Database
from headrace.store.keeper import DutyGroup
from tests.stand_ins import stand_in
from tests.store.making import Query as Rows


def test_the_api_removes_a_deleted_store_and_no_other(db: Database, tenant: str, query: Rows) -> None:
    gone, kept = (vector_stores.create(db, tenant, StoreModel("vectors", 1, 16)) for _ in range(2))
    vector_stores.delete(db, tenant, gone.id, actor="tests")
    runtime: Any = stand_in(duties_db=db)
    assert PART.work is not None
    failed: list[int] = []
    for duties in PART.work(runtime).duties:
        DutyGroup(duties, lambda *turn: failed.append(turn[2])).run_due()
    assert failed == [0]
    assert [row["id"] for row in query("SELECT id FROM vector_stores")] == [kept.id]
