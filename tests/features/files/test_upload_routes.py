"""Uploads in parts, through the official client: parts become one file, or nothing is left of them."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai as sdk
import pytest
from openai import OpenAI
from sqlalchemy import text

from headrace.features.files import files, uploads
from headrace.features.files.blob_storage import FolderBlobs
from headrace.producer_api.http import middleware
from headrace.store.db.database import Database
from headrace.store.settings import Settings
from tests.producer_api.calling import error_of
from tests.producer_api.conftest import MakeClient

CONTENT = bytes(range(256)) * 40
PART = 4096
BEGUN = {"bytes": 6, "filename": "a.txt", "mime_type": "text/plain", "purpose": "user_data"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_file_bytes": 1 << 20, "tenant_stored_bytes": 1 << 21})


def stored(settings: Settings) -> list[Path]:
    return [path for path in (settings.home / "files").rglob("*") if path.is_file()]


def begin(api: httpx2.Client, *parts: bytes) -> tuple[str, list[str]]:
    """Begin an upload of six bytes and add the parts."""
    path = "/v1/uploads/" + api.post("/v1/uploads", json=BEGUN).raise_for_status().json()["id"]
    made = [api.post(f"{path}/parts", files={"data": part}).raise_for_status().json()["id"] for part in parts]
    return path, made


def test_the_official_client_uploads_in_parts(openai: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "ä.bin"
    path.write_bytes(CONTENT)
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    done = openai.uploads.upload_file_chunked(
        file=path, mime_type="application/octet-stream", purpose="user_data", part_size=PART, md5=md5
    )
    assert (done.status, done.bytes, done.filename) == ("completed", len(CONTENT), "ä.bin")
    assert done.expires_at - done.created_at == 3600
    assert done.file is not None
    assert openai.files.retrieve(done.file.id) == done.file
    assert openai.files.content(done.file.id).read() == CONTENT
    again = openai.uploads.complete(done.id, part_ids=["part_any"])
    assert again == done, "a call that is sent again has the same answer"
    with pytest.raises(sdk.ConflictError, match="completed"):
        openai.uploads.parts.create(done.id, data=b"more")
    with pytest.raises(sdk.ConflictError, match="completed"):
        openai.uploads.cancel(done.id)


def test_parts_have_the_order_in_which_they_are_named(openai: OpenAI) -> None:
    life: Any = {"anchor": "created_at", "seconds": 3600}
    upload = openai.uploads.create(**BEGUN | {"purpose": "batch"}, expires_after=life)  # type: ignore[arg-type]
    with ThreadPoolExecutor(3) as pool:
        first, second, spare = pool.map(
            lambda part: openai.uploads.parts.create(upload.id, data=part).id, (b"foo", b"bar", b"bar")
        )
    assert len({first, second, spare}) == 3, "a part that a client sends twice is two parts"
    done = openai.uploads.complete(upload.id, part_ids=[second, first])
    assert done.file is not None
    assert openai.files.content(done.file.id).read() == b"barfoo"
    assert done.file.expires_at is not None
    assert done.file.purpose == "batch"


def test_a_cancelled_upload_leaves_nothing(openai: OpenAI, db: Database, settings: Settings) -> None:
    upload = openai.uploads.create(**BEGUN)  # type: ignore[arg-type]
    part = openai.uploads.parts.create(upload.id, data=b"foobar")
    assert openai.uploads.cancel(upload.id).status == "cancelled"
    assert openai.uploads.cancel(upload.id).status == "cancelled", "as often as it is asked for"
    for call in (
        lambda: openai.uploads.complete(upload.id, part_ids=[part.id]),
        lambda: openai.uploads.parts.create(upload.id, data=b"foobar"),
    ):
        with pytest.raises(sdk.ConflictError, match="cancelled"):
            call()
    files.remove_unreferenced(db, FolderBlobs(settings.home / "files"), older_than_s=0)
    assert stored(settings) == []


def test_an_upload_whose_time_is_over_is_gone_with_its_parts(
    api: httpx2.Client, db: Database, settings: Settings
) -> None:
    path, parts = begin(api, b"foobar")
    blobs = FolderBlobs(settings.home / "files")
    files.remove_unreferenced(db, blobs, older_than_s=0)
    assert len(stored(settings)) == 1, "a part is a reference to its content"
    with db.begin() as connection:
        connection.execute(text("UPDATE uploads SET expires_at = now()"))
    for url, body in (
        ("complete", {"json": {"part_ids": parts}}),
        ("parts", {"files": {"data": b"x"}}),
        ("cancel", {}),
    ):
        response = api.post(f"{path}/{url}", **body)  # type: ignore[arg-type]
        assert (response.status_code, error_of(response)["code"]) == (404, "not_found")
    assert uploads.expire(db) == 1
    files.remove_unreferenced(db, blobs, older_than_s=0)
    assert stored(settings) == []


def test_what_was_not_announced_is_refused(api: httpx2.Client) -> None:
    path, (foo, bar) = begin(api, b"foo", b"bar")
    _, (foreign,) = begin(api, b"bar")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"part_ids": [foo]}, "part_ids"),
        ({"part_ids": [foo, bar, foo]}, "part_ids[2]"),
        ({"part_ids": [foo, foreign]}, "part_ids[1]"),
        ({"part_ids": [foo, bar], "md5": "0" * 32}, "md5"),
    ]
    for body, param in refused:
        response = api.post(f"{path}/complete", json=body)
        assert (response.status_code, error_of(response)["param"]) == (400, param), body
    assert api.get("/v1/files").json()["data"] == []
    assert api.post(f"{path}/complete", json={"part_ids": [foo, bar]}).status_code == 200, "and it is still there"


def test_parts_are_bounded(api: httpx2.Client, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    too_large = api.post("/v1/uploads", json=BEGUN | {"bytes": settings.max_file_bytes + 1})
    assert (too_large.status_code, error_of(too_large)["param"]) == (413, "bytes")
    path, _ = begin(api)
    for size in (settings.max_file_bytes + 1, settings.max_file_bytes * 2):
        assert api.post(f"{path}/parts", files={"data": b"x" * size}).status_code == 413
    largest = b"y" * settings.max_file_bytes
    found = [api.post(f"{path}/parts", files={"data": largest}).status_code for _ in range(3)]
    assert found == [200, 200, 429], "parts count among the tenant's stored bytes"
    assert api.post("/v1/uploads", json=BEGUN).status_code == 429
    api.post(f"{path}/cancel").raise_for_status()
    monkeypatch.setattr(uploads, "MOST_PARTS", 2)
    path, _ = begin(api, b"a", b"b")
    assert api.post(f"{path}/parts", files={"data": b"c"}).status_code == 400
    begin(api, b"d")  # the parts of another upload do not count
    assert middleware.MOST_PART_BYTES == 64 << 20


def malformed() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in ("bytes", "filename", "mime_type", "purpose"):
        yield "", {"json": {key: value for key, value in BEGUN.items() if key != name}}
        for value in (None, [], {"a": 1}, -1, ""):
            yield "", {"json": BEGUN | {name: value}}
    for name in ("filename", "mime_type"):
        yield "", {"json": BEGUN | {name: "x" * 256}}
    for life in ("soon", {"anchor": "created_at"}, {"anchor": "now", "seconds": 3600}, {"anchor": 1, "seconds": "x"}):
        yield "", {"json": BEGUN | {"expires_after": life}}
    for ids in (None, [], "part_x", [1], [None], ["x"] * 1025, ["\0"], {"0": "x"}):
        yield "/{id}/complete", {"json": {"part_ids": ids}}
    for md5 in ("", "x" * 32, 5, "0" * 31):
        yield "/{id}/complete", {"json": {"part_ids": ["x"], "md5": md5}}
    yield "/{id}/parts", {"json": {"data": "x"}}
    yield "/{id}/parts", {"files": {"file": b"x"}}
    yield "/{id}/parts", {"data": {"data": "x"}}


def test_malformed_bodies_are_refused_in_one_shape(api: httpx2.Client) -> None:
    upload_id = api.post("/v1/uploads", json=BEGUN).json()["id"]
    for path, body in malformed():
        response = api.post(f"/v1/uploads{path.format(id=upload_id)}", **body)
        assert response.status_code == 400, (path, str(body)[:200], response.text)
        assert error_of(response)["code"] == "invalid_value"


def test_another_tenants_upload_is_not_there(api: httpx2.Client, make_client: MakeClient, other_key: str) -> None:
    path, parts = begin(api, b"foobar")
    stranger = make_client(other_key)
    for url, body in (
        ("complete", {"json": {"part_ids": parts}}),
        ("parts", {"files": {"data": b"x"}}),
        ("cancel", {}),
    ):
        response = stranger.post(f"{path}/{url}", **body)  # type: ignore[arg-type]
        assert (response.status_code, error_of(response)["code"]) == (404, "not_found")
    assert api.post(f"{path}/complete", json={"part_ids": parts}).status_code == 200
