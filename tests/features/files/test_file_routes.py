import io
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import text

from headrace.features.files.file_form import BLOCK_BYTES
from headrace.store.db.database import Database
from headrace.store.settings import Settings
from tests.cases import some_of
from tests.producer_api.calling import error_of
from tests.producer_api.conftest import MakeClient

MOST = 4 << 20


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_file_bytes": MOST, "tenant_stored_bytes": 2 * MOST})


def post(api: httpx2.Client, content: bytes = b"hello", **fields: str) -> httpx2.Response:
    return api.post("/v1/files", data={"purpose": "user_data"} | fields, files={"file": ("a.txt", content)})


def test_the_official_client_keeps_files(openai: OpenAI) -> None:
    first = openai.files.create(file=("ä.jsonl", b"{}\n"), purpose="batch")
    expiring = {"anchor": "created_at", "seconds": 3600}
    second = openai.files.create(file=b"x" * (BLOCK_BYTES + 1), purpose="user_data", expires_after=expiring)  # type: ignore[arg-type]
    assert (first.filename, first.bytes, first.purpose, first.status) == ("ä.jsonl", 3, "batch", "processed")
    assert first.expires_at is None
    assert second.expires_at is not None
    assert second.expires_at - second.created_at == 3600
    assert openai.files.retrieve(first.id) == first
    assert openai.files.content(first.id).read() == b"{}\n"
    assert openai.files.content(second.id).read() == b"x" * (BLOCK_BYTES + 1)
    assert [file.id for file in openai.files.list()] == [second.id, first.id]
    assert [file.id for file in openai.files.list(limit=1)] == [second.id, first.id], "over two pages"
    assert [file.id for file in openai.files.list(order="asc", purpose="batch")] == [first.id]
    assert openai.files.delete(first.id).deleted
    assert [file.id for file in openai.files.list()] == [second.id]


def test_a_large_upload_takes_little_memory(openai: OpenAI, settings: Settings) -> None:
    content = io.BytesIO(b"y" * MOST)
    tracemalloc.start()
    made = openai.files.create(file=content, purpose="user_data")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.bytes == MOST
    # The client is in this process, too; its body is one copy of the file.
    assert peak < 2.5 * MOST
    assert not list(Path(settings.home / "files" / "drafts").iterdir()), "nothing half written is left"


def test_a_file_that_is_too_large_is_refused_and_leaves_nothing(api: httpx2.Client, settings: Settings) -> None:
    # A little over is found when it has come, much over by the length that is declared.
    for size in (MOST + 1, MOST + (1 << 20)):
        response = post(api, b"z" * size)
        assert response.status_code == 413
        assert error_of(response)["code"] == "request_too_large"
    assert not [path for path in Path(settings.home / "files").rglob("*") if path.is_file()]
    assert api.get("/v1/files").json()["data"] == []


def test_a_tenant_s_files_have_a_bound_together(api: httpx2.Client, make_client: MakeClient, other_key: str) -> None:
    kept = post(api, b"a" * MOST).json()
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda _: post(api, b"b" * (MOST // 2 + 1)), range(4))]
    assert sorted(each.status_code for each in found) == [200, 429, 429, 429], "however many come at once"
    refused = next(each for each in found if each.status_code == 429)
    assert error_of(refused)["code"] == "quota_exceeded"
    assert post(make_client(other_key), b"c" * MOST).status_code == 200, "another tenant has its own"
    api.delete(f"/v1/files/{kept['id']}")
    assert post(api, b"d" * MOST).status_code == 200


@some_of(
    2,
    ("fields", "param"),
    [
        ({"purpose": "batch_output"}, "purpose"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"}, "expires_after.seconds"),
        ({"expires_after[seconds]": "3600"}, "expires_after.anchor"),
        ({"expires_after[anchor]": "created_at"}, "expires_after.seconds"),
    ],
)
def test_a_field_that_is_wrong_is_named(api: httpx2.Client, fields: dict[str, str], param: str) -> None:
    response = post(api, **fields)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


@some_of(
    2,
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"nothing of the kind"),
        ("multipart/form-data; boundary=b", b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\ncut'),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nx\r\n--b--\r\n',
        ),
    ],
)
def test_what_is_no_form_with_a_file_is_refused(api: httpx2.Client, kind: str, body: bytes) -> None:
    response = api.post("/v1/files", content=body, headers={"content-type": kind})
    assert response.status_code == 400, response.text
    assert error_of(response)["code"] == "invalid_value"


def test_another_tenant_s_file_is_not_there(api: httpx2.Client, make_client: MakeClient, other_key: str) -> None:
    file_id = post(api).json()["id"]
    stranger = make_client(other_key)
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        response = stranger.request(method, f"/v1/files/{file_id}{path}")
        assert (response.status_code, error_of(response)["code"]) == (404, "not_found")
    assert stranger.get("/v1/files").json()["data"] == []
    content = api.get(f"/v1/files/{file_id}/content")
    assert (content.content, content.headers["content-type"]) == (b"hello", "application/octet-stream")
    assert content.headers["content-length"] == "5"
    assert content.headers["etag"].startswith(f'"{sha256(b"hello").hexdigest()}')


def test_a_file_whose_time_is_over_is_gone(api: httpx2.Client, db: Database) -> None:
    asked = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file_id = post(api, **asked).json()["id"]
    with db.begin() as connection:
        connection.execute(text("UPDATE files SET expires_at = now()"))
    assert api.get(f"/v1/files/{file_id}").status_code == 404
    assert api.get("/v1/files").json()["data"] == []
