"""Reads the images of a job that are files or on servers.

A server is called by the guarded client of webhooks, within one deadline for all images of a job, and without
redirects.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from headrace.assembly import parts
from headrace.store.calls.ssrf_guard import AnswerTooLong, CallFailed, GuardedClient
from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError, InvalidRequest, NotFound, TooLarge
from headrace.store.payloads.conversation import MAX_IMAGE_BYTES, Image
from headrace.store.settings import Settings

CALLS_S = 30.0
"""For all calls of a job to servers of images."""

_HEADERS = {"user-agent": "Headrace-Images/1", "accept": "image/*"}
_OK = 200


ReadFile: TypeAlias = Callable[[Database, str, str, int], bytes]
"""Returns the bytes of a file by its tenant's id and its own, if they are not more than the last number.

Raises NotFound, TooLarge, Unavailable."""


@dataclass(frozen=True, slots=True)
class ContentsPart:
    """The ``PART`` of a feature's file ``contents``: reads the files that images of a job may name."""

    open: Callable[[Settings], ReadFile]


def deadline() -> float:
    """Return when the calls of a job that begins to read its images must have ended, by ``time.monotonic``."""
    return time.monotonic() + CALLS_S


class ImageSource:
    """Reads the bytes of images that are files or on servers. Called from many threads at once."""

    def __init__(self, settings: Settings, *, client: GuardedClient | None = None) -> None:
        self._client = client or GuardedClient(settings)
        self._read_file = next((part.open(settings) for part in parts("contents", ContentsPart)), _no_files)

    def read(self, db: Database, tenant_id: str, image: Image, until: float) -> bytes:
        """Return the bytes of a tenant's image, which may be no image. ``until``: a ``deadline``.

        Raises InvalidRequest (code ``image_unavailable``), Unavailable.
        """
        if image.file_id is not None:
            return self._of_file(db, tenant_id, image.file_id)
        return self._of_server(image.server_url or "", until - time.monotonic())

    def _of_file(self, db: Database, tenant_id: str, file_id: str) -> bytes:
        try:
            return self._read_file(db, tenant_id, file_id, MAX_IMAGE_BYTES)
        except NotFound:
            raise _unavailable(f"the file {file_id} does not exist: upload it again") from None
        except TooLarge as error:
            raise _unavailable(error.message) from None

    def _of_server(self, url: str, left_s: float) -> bytes:
        try:
            answer = self._client.get(url, headers=_HEADERS, timeout_s=max(left_s, 0.0), most_bytes=MAX_IMAGE_BYTES)
        except AnswerTooLong:
            raise _unavailable(f"the image's server sent more than {MAX_IMAGE_BYTES} bytes") from None
        except CallFailed as error:
            raise _unavailable(f"the image's server gave no answer: {error}") from None
        if answer.status != _OK:
            raise _unavailable(f"the image's server answered {answer.status}; redirects are not followed")
        return answer.body


def _no_files(_db: Database, _tenant_id: str, file_id: str, _most_bytes: int) -> bytes:
    raise NotFound(f"no file {file_id}")


def _unavailable(why: str) -> HeadraceError:
    return InvalidRequest(why, code="image_unavailable")
