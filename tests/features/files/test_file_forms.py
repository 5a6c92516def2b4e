"""Reading of forms with a file, and the views of files and uploads. No services."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from headrace.features.files.file_form import FileForm, read_form
from headrace.features.files.file_routes import check_life_s, purpose_of
from headrace.features.files.file_views import file_list
from headrace.features.files.files import File, Purpose
from headrace.features.files.upload_views import part_object, upload_object
from headrace.features.files.uploads import Upload, UploadPart, UploadStatus
from headrace.store.errors import HeadraceError, InvalidRequest, TooLarge
from tests.refusals import Naming

START = datetime.fromtimestamp(1_800_000_000, UTC)
FORM = "multipart/form-data; boundary=b"


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


class Draft:
    """A draft in memory."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.num_bytes = 0
        self.is_dropped = False

    def write(self, data: bytes) -> None:
        self.blocks.append(data)
        self.num_bytes += len(data)

    def drop(self) -> None:
        self.is_dropped = True


def part(name: str | None, value: bytes, filename: str | None = None) -> bytes:
    named = "" if name is None else f'; name="{name}"'
    of_file = "" if filename is None else f'; filename="{filename}"'
    return f"--b\r\nContent-Disposition: form-data{named}{of_file}\r\n\r\n".encode() + value + b"\r\n"


END = b"--b--\r\n"
FILE = part("file", b"hello", "a.txt")


async def read(
    *chunks: bytes, most: int = 100, kind: str = FORM, name: str = "file", drafts: list[Draft] | None = None
) -> FileForm[Draft]:
    left = list(chunks)

    async def receive() -> Message:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    scope = {"type": "http", "headers": [(b"content-type", kind.encode())]}

    def create() -> Draft:
        made = Draft()
        if drafts is not None:
            drafts.append(made)
        return made

    return await read_form(Request(scope, receive), create, most, name=name)


async def refused(*chunks: bytes, **named: Any) -> tuple[type, str, str | None]:
    """Return the error of a form that is refused; its draft must be dropped."""
    drafts: list[Draft] = []
    with pytest.raises(HeadraceError) as caught:
        await read(*chunks, drafts=drafts, **named)
    assert all(draft.is_dropped for draft in drafts)
    return type(caught.value), caught.value.message, caught.value.param


async def test_a_form_has_fields_and_one_file() -> None:
    fields = part("purpose", b"batch") + part("x[]", b"1") + part("x[]", b"2") + part("y", b"1") + part("y", b"2")
    form = await read(fields[:70], fields[70:] + FILE[:20], FILE[20:] + part(None, b"nobody") + END)
    assert form.fields == {"purpose": "batch", "x[]": "1,2", "y": "2"}
    assert (form.filename, form.draft.blocks, form.draft.is_dropped) == ("a.txt", [b"hello"], False)
    unnamed = await read(part("data", b"x") + END, name="data")
    assert (unnamed.filename, unnamed.draft.num_bytes) == ("file", 1)
    long = await read(part("file", b"x", "n" * 300) + END)
    assert long.filename == "n" * 255


async def test_a_file_is_written_block_by_block() -> None:
    mib = 1 << 20
    form = await read(part("file", b"", "a")[:-2], b"x" * (mib + 1), b"y" * 3, b"\r\n" + END, most=2 * mib)
    assert [len(block) for block in form.draft.blocks] == [mib + 1, 3]


async def test_a_file_may_be_as_large_as_the_limit() -> None:
    over = (TooLarge, Naming("5 bytes"), "file")
    assert (await read(FILE + END, most=5)).draft.num_bytes == 5
    assert await refused(part("file", b"123456") + END, most=5) == over
    assert await refused(part("file", b"x" * 70_000), most=5) == over, "before its end has come"
    assert (await refused(part("data", b"123456") + END, most=5, name="data"))[2] == "data"


@pytest.mark.parametrize(
    ("chunks", "kind", "error"),
    [
        ([b"{}"], "application/json", ("multipart/form-data", None)),
        ([FILE + END], "multipart/form-data", ("multipart/form-data", None)),
        ([FILE], FORM, ("boundary", None)),
        ([part("purpose", b"x") + END], FORM, ("required", "file")),
        ([FILE + FILE + END], FORM, ("one `file`", "file")),
        ([part("a", b"x" * 65_537) + END], FORM, ("65536 bytes", None)),
        ([part("a", b"") * 33 + END], FORM, ("32 parts", None)),
    ],
)
async def test_a_form_that_cannot_be_read_says_why(
    chunks: list[bytes], kind: str, error: tuple[str, str | None]
) -> None:
    named, param = error
    assert await refused(*chunks, kind=kind, most=1 << 20) == (InvalidRequest, Naming(named), param)


async def test_a_form_at_its_bounds_is_read() -> None:
    form = await read(part("a", b"x" * 65_536) + part("b", b"") * 30 + FILE + END, most=1 << 20)
    assert (len(form.fields["a"]), form.fields["b"]) == (65_536, "")


async def test_a_form_that_does_not_parse_or_is_cut_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, message, _ = await refused(b"nothing of the kind")
    assert "parse" in message

    async def stream(_: Request) -> AsyncIterator[bytes]:
        yield FILE
        raise ClientDisconnect

    monkeypatch.setattr(Request, "stream", stream)
    kind, message, param = await refused(b"")
    assert (kind, "cut off" in message, param) == (InvalidRequest, True, None)


def test_a_purpose_and_a_life_are_checked() -> None:
    assert purpose_of("batch") is Purpose.BATCH
    for given in (None, "", "batch_output", "Batch"):
        with pytest.raises(InvalidRequest) as caught:
            purpose_of(given)
        fault = "required" if given is None else "unknown"
        purposes = Naming(fault, "assistants, batch, evals, fine-tune, user_data, vision")
        assert (caught.value.message, caught.value.param) == (purposes, "purpose")
    assert [check_life_s("created_at", given, "x") for given in (3600, 2_592_000)] == [3600.0, 2_592_000.0]
    errors = {
        ("now", 3600): ("created_at", "x.anchor"),
        ("created_at", None): ("3600 to 2592000", "x.seconds"),
        ("created_at", 3599): ("3600 to 2592000", "x.seconds"),
        ("created_at", 2_592_001): ("3600 to 2592000", "x.seconds"),
    }
    for (anchor, seconds), (named, param) in errors.items():
        with pytest.raises(InvalidRequest) as caught:
            check_life_s(anchor, seconds, "x")
        assert (caught.value.message, caught.value.param) == (Naming(named), param)


STORED = File("file_1", "acme", "d", 9, "a.txt", Purpose.BATCH, START, at(60))
SHOWN = {
    "id": "file_1",
    "object": "file",
    "bytes": 9,
    "created_at": 1_800_000_000,
    "expires_at": 1_800_000_060,
    "filename": "a.txt",
    "purpose": "batch",
    "status": "processed",
    "status_details": None,
}


def test_files_and_uploads_are_shown_whole() -> None:
    page = file_list([STORED, replace(STORED, id="file_2", expires_at=None)], 1)
    assert page.model_dump(mode="json") == {
        "object": "list",
        "data": [SHOWN],
        "first_id": "file_1",
        "last_id": "file_1",
        "has_more": True,
    }
    assert file_list([STORED], 1).has_more is False
    upload = Upload("up_1", "acme", UploadStatus.PENDING, 8, "b.txt", Purpose.VISION, 5, None, at(1), at(2))
    shown = {
        "id": "up_1",
        "object": "upload",
        "bytes": 8,
        "created_at": 1_800_000_001,
        "expires_at": 1_800_000_002,
        "filename": "b.txt",
        "purpose": "vision",
        "status": "pending",
        "file": None,
    }
    assert upload_object(upload).model_dump(mode="json") == shown
    assert upload_object(upload, STORED).model_dump(mode="json") == shown | {"file": SHOWN}
    found = part_object(UploadPart("part_1", "up_1", "d", 3, at(4)))
    assert found.model_dump() == {
        "id": "part_1",
        "object": "upload.part",
        "created_at": 1_800_000_004,
        "upload_id": "up_1",
    }
