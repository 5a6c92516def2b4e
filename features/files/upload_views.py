"""Request and response models of OpenAI's uploads: files that come in parts."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints

from headrace.features.files.file_views import FileObject, file_object
from headrace.features.files.files import File, Purpose
from headrace.features.files.uploads import MOST_PARTS, Upload, UploadPart, UploadStatus
from headrace.store.payloads.strict_model import Body


class FileLife(Body):
    """How long the file is kept, counted from its upload's completion."""

    anchor: str
    seconds: StrictInt


class NewUpload(Body):
    """The body of ``POST /v1/uploads``."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"filename": "requests.jsonl", "bytes": 104857600, "mime_type": "application/jsonl", "purpose": "batch"}
            ]
        },
    )

    bytes: Annotated[StrictInt, Field(ge=1, lt=1 << 53)] = Field(description="the size of the whole file in bytes")
    filename: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    mime_type: Annotated[str, StringConstraints(min_length=1, max_length=255)] = Field(
        description="what the file contains; it is not stored"
    )
    purpose: str
    expires_after: FileLife | None = Field(None, description="when the file is deleted; default: never")


class UploadCompletion(Body):
    """The body of ``POST /v1/uploads/{upload_id}/complete``."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "part_ids": ["part_0197f0c2a3b47d518e9a2b6c7d8e9f01", "part_0197f0c2a3b47d518e9a2b6c7d8e9f02"],
                    "md5": "d41d8cd98f00b204e9800998ecf8427e",
                }
            ]
        },
    )

    part_ids: Annotated[tuple[str, ...], Field(min_length=1, max_length=MOST_PARTS)] = Field(
        description="the parts in the order of the file; those that are not named are dropped"
    )
    md5: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{32}$")] | None = Field(
        None, description="MD5 of the whole file in hex; another one is refused"
    )


class UploadObject(BaseModel):
    """An upload."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int = Field(description="until when parts are accepted, Unix seconds")
    filename: str
    purpose: Purpose
    status: UploadStatus
    file: FileObject | None = Field(description="the file; null until the upload is complete")


class UploadPartObject(BaseModel):
    """A part of an upload."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str = Field(description="the upload that it is a part of")


def upload_object(upload: Upload, file: File | None = None) -> UploadObject:
    """Return the upload, with its file if it has one."""
    return UploadObject(
        id=upload.id,
        bytes=upload.num_bytes,
        created_at=int(upload.created_at.timestamp()),
        expires_at=int(upload.expires_at.timestamp()),
        filename=upload.filename,
        purpose=upload.purpose,
        status=upload.status,
        file=None if file is None else file_object(file),
    )


def part_object(part: UploadPart) -> UploadPartObject:
    """Return the part."""
    return UploadPartObject(id=part.id, created_at=int(part.created_at.timestamp()), upload_id=part.upload_id)
