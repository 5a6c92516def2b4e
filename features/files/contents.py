"""What files add to a worker: the bytes of a tenant's file that a job names as an image."""

from functools import partial

from headrace.features.files import files
from headrace.features.files.blob_storage import Blobs, open_blobs, read_blocks
from headrace.store.db.database import Database
from headrace.store.errors import TooLarge
from headrace.store.settings import Settings
from headrace.workers.images.image_source import ContentsPart, ReadFile


def _read(blobs: Blobs, db: Database, tenant_id: str, file_id: str, most_bytes: int) -> bytes:
    file = files.get(db, tenant_id, file_id)
    if file.num_bytes > most_bytes:
        raise TooLarge(f"the file {file_id} has {file.num_bytes} bytes, and {most_bytes} are accepted")
    return b"".join(read_blocks(blobs, file.digest))


def _open(settings: Settings) -> ReadFile:
    return partial(_read, open_blobs(settings))


PART = ContentsPart(_open)
