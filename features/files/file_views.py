"""Response models of OpenAI's files."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from headrace.features.files.files import File, Purpose
from headrace.producer_api.http.views import seconds


class FileObject(BaseModel):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """The deleted file."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def file_object(file: File) -> FileObject:
    """Return the file."""
    return FileObject(
        id=file.id,
        bytes=file.num_bytes,
        created_at=int(file.created_at.timestamp()),
        expires_at=seconds(file.expires_at),
        filename=file.filename,
        purpose=file.purpose,
    )


def file_list(found: Sequence[File], limit: int) -> FileList:
    """Return a page of files, where ``found`` has up to ``limit + 1`` entries."""
    return FileList(**file_page([file_object(file) for file in found], limit))


def file_page(found: Sequence[Any], limit: int) -> dict[str, Any]:
    """Return the fields of a page, where ``found`` has up to ``limit + 1`` entries."""
    data = list(found[:limit])
    return {
        "data": data,
        "first_id": data[0].id if data else None,
        "last_id": data[-1].id if data else None,
        "has_more": len(found) > limit,
    }
