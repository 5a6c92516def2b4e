"""The official client's vector stores, a live server and a real worker process: files in, passages out, each once."""

import io
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from openai import NotFoundError, OpenAI

from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.e2e.office_files import read_office_files
from tests.e2e.test_embeddings import calling, worker
from tests.processes import StartProcess
from tests.workers.conftest import Bench, Duties, worker_command, worker_environment

MILL = "The headrace leads water to the mill. " * 30 + "\n\n" + "The tailrace leads it back to the river. " * 30
BREAD = "Bread is made of flour. The baker bakes it in the oven at night. " * 20
PAGE = (
    "<html><head><title>Oats</title></head><body><article><p>Horses eat oats in the stable.</p></article></body></html>"
)


@pytest.fixture
def bench(db: Database, settings: Settings) -> Iterator[Bench]:
    bench = Bench(db, settings, register(db, "vectors", "fake-encoder", "auto", actor="tests"))
    duties = Duties(bench)
    duties.start()
    yield bench
    duties.stop()
    bench.close()


def upload(client: OpenAI, name: str, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    return client.files.create(file=(name, io.BytesIO(data)), purpose="assistants").id


@contextmanager
def another_tenants(client: OpenAI, db: Database) -> Iterator[OpenAI]:
    key = api_keys.create_key(db, api_keys.create_tenant(db, "globex"), "k", api_keys.SCOPES, actor="tests")
    with OpenAI(base_url=client.base_url, api_key=key, max_retries=0) as other:
        yield other


def check_passages(bench: Bench, store_id: str) -> None:
    """Each passage of each file is there once."""
    found = bench.query(
        "SELECT file_id, count(*) AS num, max(position) + 1 AS last FROM vector_store_passages "
        "WHERE store_id = :store GROUP BY 1",
        store=store_id,
    )
    files = bench.query("SELECT file_id, num_passages FROM vector_store_files WHERE store_id = :store", store=store_id)
    assert {row.file_id: row.num for row in found} == {row.file_id: row.num_passages for row in files}
    assert all(row.num == row.last > 1 for row in found)


@pytest.mark.timeout(600)
@pytest.mark.full
def test_the_official_client_fills_a_store_and_finds_passages(
    bench: Bench, settings: Settings, db: Database, start_process: StartProcess
) -> None:
    """A worker is killed while it writes passages; all else is done with the next one."""
    with calling(settings, db, bench.tenant_id) as client:
        crowd = client.vector_stores.create(name="crowd")
        ids = [upload(client, f"{n}.txt", f"Number {n} stands alone. " * 80) for n in range(12)]
        many = client.vector_stores.file_batches.create(crowd.id, file_ids=ids)
        killed = {"environment": "test", "failpoints": "passages.before_commit=kill"}
        process = start_process(worker_command("vectors"), worker_environment(settings, killed))
        assert process.wait_exit() == -signal.SIGKILL
        with worker(start_process, settings, "vectors"):
            fill_and_search(client, db)
            read_office_files(client)
            done = client.vector_stores.file_batches.poll(many.id, vector_store_id=crowd.id, poll_interval_ms=20)
    assert (done.file_counts.completed, done.file_counts.total) == (12, 12)
    assert bench.query("SELECT FROM jobs WHERE attempt > 1"), "the killed worker had no job"
    check_passages(bench, crowd.id)


def fill_and_search(client: OpenAI, db: Database) -> None:
    stores = client.vector_stores
    store = stores.create(name="Handbook", metadata={"of": "mill"})
    assert (store.status, store.file_counts.total) == ("completed", 0)
    mill, bread, page = (
        upload(client, "mill.md", MILL),
        upload(client, "b.txt", BREAD),
        upload(client, "o.html", PAGE),
    )
    file = stores.files.create_and_poll(mill, vector_store_id=store.id, attributes={"year": 1840}, poll_interval_ms=20)
    assert (file.status, file.attributes, file.last_error) == ("completed", {"year": 1840.0}, None)
    bad = upload(client, "bad.pdf", b"%PDF-1.4 no more")
    batch = stores.file_batches.create_and_poll(
        vector_store_id=store.id, file_ids=[bread, page, bad], poll_interval_ms=20
    )
    assert (batch.status, batch.file_counts.completed, batch.file_counts.failed) == ("completed", 2, 1)
    (failed,) = stores.file_batches.list_files(batch.id, vector_store_id=store.id, filter="failed")
    assert failed.id == bad
    assert failed.last_error is not None
    assert failed.last_error.code == "invalid_file"
    assert "damaged" in failed.last_error.message
    found = stores.search(store.id, query="What leads water back to the river?", max_num_results=3).data
    assert found[0].file_id == mill
    assert "tailrace" in found[0].content[0].text
    assert found[0].score >= found[1].score > 0
    text_alone = {"hybrid_search": {"embedding_weight": 0, "text_weight": 1}}
    oats = stores.search(store.id, query="horses", ranking_options=text_alone).data
    assert [one.filename for one in oats] == ["o.html"], "other files have no such word"
    old = {"type": "lt", "key": "year", "value": 1900}
    assert {one.file_id for one in stores.search(store.id, query="oven", filters=old).data} == {mill}
    content = list(stores.files.content(mill, vector_store_id=store.id))
    assert content[0].text is not None
    assert content[0].text.startswith("The headrace")
    assert sorted(one.id for one in stores.files.list(store.id)) == sorted([mill, bread, page, bad])
    with another_tenants(client, db) as other:
        own = other.vector_stores.create()
        for call in (
            lambda: other.vector_stores.search(store.id, query="mill"),
            lambda: other.vector_stores.files.content(mill, vector_store_id=store.id),
            lambda: other.vector_stores.files.create(own.id, file_id=mill),
            lambda: other.vector_stores.delete(store.id),
        ):
            with pytest.raises(NotFoundError):
                call()
        assert other.vector_stores.search(own.id, query="mill headrace").data == []
    stores.files.delete(mill, vector_store_id=store.id)
    client.files.delete(bread)
    assert stores.retrieve(store.id).file_counts.total == 2, "a deleted file is in no store"
    assert stores.search(store.id, query="oven river", ranking_options=text_alone).data == []
    assert [one.name for one in stores.list()] == ["Handbook", "crowd"]
    assert stores.update(store.id, name="Rest", expires_after={"anchor": "last_active_at", "days": 1}).expires_at
    assert stores.delete(store.id).deleted
    with pytest.raises(NotFoundError):
        stores.retrieve(store.id)
