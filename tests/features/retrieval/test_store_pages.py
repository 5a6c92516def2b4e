"""Vector stores and their files over HTTP: added, listed page by page, changed and taken out."""

from collections.abc import Mapping
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from headrace.features.retrieval import store_file_routes, store_files
from headrace.features.retrieval.passages import FilePassages, Passage
from headrace.features.retrieval.store_files import NewStoreFile
from headrace.store.db.database import Database
from headrace.store.registry.models import ModelVersion
from tests.features.retrieval.test_store_routes import STATIC, STORES, created, read, upload
from tests.producer_api.calling import error_of, num_jobs, state_of

pytestmark = pytest.mark.usefixtures("encoder")


def ids(page: Mapping[str, Any]) -> list[str]:
    return [one["id"] for one in page["data"]]


def post(api: httpx2.Client, path: str, **body: Any) -> dict[str, Any]:
    return dict(api.post(f"{STORES}/{path}", json=body).raise_for_status().json())


def test_stores_and_files_are_listed_page_by_page(api: httpx2.Client) -> None:
    files = [upload(api) for _ in range(3)]
    stores = [created(api, name=str(number), file_ids=files if number == 2 else [])["id"] for number in range(3)]
    path = f"{stores[2]}/files"
    batch = post(api, f"{stores[1]}/file_batches", file_ids=files)
    of_batch = f"{stores[1]}/file_batches/{batch['id']}/files"
    for base, oldest_first in (("", stores), (path, files), (of_batch, files)):
        newest_first = oldest_first[::-1]
        assert ids(read(api, base)) == newest_first
        first = read(api, f"{base}?limit=2")
        assert (ids(first), first["has_more"], first["first_id"], first["last_id"]) == (
            newest_first[:2],
            True,
            newest_first[0],
            newest_first[1],
        )
        second = read(api, f"{base}?limit=2&after={newest_first[1]}")
        assert (ids(second), second["has_more"]) == (newest_first[2:], False)
        assert ids(read(api, f"{base}?limit=1&before={newest_first[2]}")) == newest_first[1:2]
        assert ids(read(api, f"{base}?order=asc")) == oldest_first
        for wrong in ("limit=0", "limit=101", "order=up"):
            assert api.get(f"{STORES}/{base}?{wrong}").status_code == 400
    for base in (path, of_batch):
        assert ids(read(api, f"{base}?filter=in_progress")) == files[::-1]
        assert ids(read(api, f"{base}?filter=completed")) == []
    assert ids(read(api, f"{stores[0]}/files")) == []
    assert api.get(f"{STORES}/{stores[0]}/file_batches/{batch['id']}").status_code == 404


def test_a_file_is_added_with_its_numbers_changed_and_taken_out(api: httpx2.Client, db: Database) -> None:
    life = {"anchor": "last_active_at", "days": 3}
    one, two, three = (upload(api) for _ in range(3))
    store = created(api, file_ids=[one], chunking_strategy=STATIC, expires_after=life, description="d")
    assert (store["expires_after"], store["description"], store["name"]) == (life, "d", "")
    assert store["expires_at"] == pytest.approx(store["last_active_at"] + 3 * 86_400, abs=1)
    path = f"{store['id']}/files"
    assert read(api, f"{path}/{one}")["chunking_strategy"] == STATIC
    added = post(api, path, file_id=two, attributes={"year": 2026})
    assert (added["attributes"], added["chunking_strategy"]["static"]) == (
        {"year": 2026},
        {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 200},
    )
    own = {"file_id": three, "attributes": {"n": 1}, "chunking_strategy": STATIC}
    batch = post(api, f"{store['id']}/file_batches", files=[own])
    assert (batch["vector_store_id"], batch["file_counts"]["total"]) == (store["id"], 1)
    assert read(api, f"{path}/{three}")["attributes"] == {"n": 1}
    assert post(api, f"{path}/{two}", attributes={"a": "b"})["attributes"] == {"a": "b"}
    assert post(api, f"{path}/{two}", attributes=None)["attributes"] == {}
    removed = api.delete(f"{STORES}/{path}/{two}").json()
    assert removed == {"id": two, "object": "vector_store.file.deleted", "deleted": True}
    assert state_of(db, added["job_id"]) == "cancelled"
    assert api.get(f"{STORES}/{path}/{two}").status_code == 404
    assert api.get(f"/v1/files/{two}").status_code == 200
    assert post(api, store["id"], name="x")["expires_after"] == life
    assert post(api, store["id"], expires_after=None)["expires_after"] is None
    with db.begin() as connection:
        classes = connection.execute(text("SELECT DISTINCT class_rank FROM jobs")).scalars().all()
    assert classes == [2], "files are read in the class batch"
    gone = api.delete(f"{STORES}/{store['id']}").json()
    assert gone == {"id": store["id"], "object": "vector_store.deleted", "deleted": True}
    for wrong in (path, f"{path}/{one}", f"{path}/{one}/content", f"{store['id']}/file_batches/{batch['id']}"):
        assert api.get(f"{STORES}/{wrong}").status_code == 404, wrong
    assert api.delete(f"{STORES}/{path}/{one}").status_code == 404
    assert api.post(f"{STORES}/{path}/{one}", json={"attributes": None}).status_code == 404


def test_files_are_added_all_or_none(api: httpx2.Client, db: Database) -> None:
    file = upload(api)
    store = created(api)["id"]
    for path, body in (
        ("", {"file_ids": [file, "file_none"]}),
        (f"/{store}/file_batches", {"file_ids": [file, "file_none"]}),
        (f"/{store}/files", {"file_id": "file_none"}),
    ):
        assert api.post(f"{STORES}{path}", json=body).status_code == 404
    wide = {"type": "static", "static": {"max_chunk_size_tokens": 4096, "chunk_overlap_tokens": 0}}
    assert post(api, f"{store}/files", file_id=file, chunking_strategy=wide)["chunking_strategy"] == wide
    assert ids(read(api, "")) == [store], "a store is not kept without its files"
    assert ids(read(api, f"{store}/files")) == [file]
    assert num_jobs(db) == 1


def test_a_policy_reads_names_and_attributes(api: httpx2.Client) -> None:
    rule = {"id": "mail", "kinds": ["email"], "action": "redact", "stage": "input"}
    api.put("/v1/policies", json={"document": {"rules": [rule]}}).raise_for_status()
    mail, hidden = "ann@example.com", "<EMAIL_1>"
    store = created(api, name=mail, metadata={"of": mail})
    assert (store["name"], store["metadata"]) == (hidden, {"of": hidden})
    assert post(api, store["id"], metadata={"by": mail})["metadata"] == {"by": hidden}
    one, two = upload(api), upload(api)
    path = f"{store['id']}/files"
    assert post(api, path, file_id=one, attributes={"of": mail})["attributes"] == {"of": hidden}
    # Keys that are identifiers elsewhere.
    kinds = ("by", "name", "id", "type", "status")
    assert post(api, f"{path}/{one}", attributes=dict.fromkeys(kinds, mail))["attributes"] == dict.fromkeys(
        kinds, hidden
    )
    post(api, f"{store['id']}/file_batches", file_ids=[two], attributes={"of": mail})
    assert read(api, f"{path}/{two}")["attributes"] == {"of": hidden}


def test_the_text_of_a_file_comes_page_by_page(
    api: httpx2.Client, db: Database, tenant: str, encoder: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = created(api)["id"]
    ((file,), _) = store_files.attach(db, tenant, store, [NewStoreFile(upload(api), {}, 100, 0)])
    told = tuple(Passage(f"p{number}", number, number + 1) for number in range(5))
    with db.begin() as connection:
        FilePassages(file.ticket, tenant, told, (b"\0" * 32,) * 5).write(connection, db.seal)
    monkeypatch.setattr(store_file_routes, "PASSAGES_A_PAGE", 2)
    path = f"{store}/files/{file.file_id}/content"
    pages = [read(api, path)]
    while (after := pages[-1]["next_page"]) is not None:
        pages.append(read(api, f"{path}?page={after}"))
    assert [[one["text"] for one in page["data"]] for page in pages] == [["p0", "p1"], ["p2", "p3"], ["p4"]]
    assert [page["has_more"] for page in pages] == [True, True, False]


def test_a_search_that_rewrites_the_question_is_refused(api: httpx2.Client, db: Database) -> None:
    store = created(api)["id"]
    refused = api.post(f"{STORES}/{store}/search", json={"query": "x", "rewrite_query": True})
    assert (error_of(refused)["code"], error_of(refused)["param"]) == ("unsupported_parameter", "rewrite_query")
    assert num_jobs(db) == 0
