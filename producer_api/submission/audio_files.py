"""The audio of transcribe requests: a tenant's file, whose header is read before a job is made of it."""

from typing import TypeGuard

from headrace.prompts.audio.audio_file import AudioBounds, inspect
from headrace.store.db.database import Database
from headrace.store.errors import NotFound
from headrace.store.files import files
from headrace.store.files.blob_storage import Blobs
from headrace.store.files.files import File
from headrace.store.settings import Settings
from headrace.store.tasks.registry import JobRequest
from headrace.store.tasks.transcribe import AudioSource, TranscribeRequest

_FILE_ID = "input.file_id"


class AudioFiles:
    """Reads audio within the bounds of the settings. Blocks."""

    def __init__(self, settings: Settings, db: Database, blobs: Blobs) -> None:
        self._db = db
        self._blobs = blobs
        self._bounds = AudioBounds(
            settings.max_audio_s, settings.max_audio_channels, settings.min_audio_hz, settings.max_audio_hz
        )

    @staticmethod
    def is_needed(request: JobRequest) -> TypeGuard[TranscribeRequest]:
        """Return True for a request whose audio was not read yet."""
        return isinstance(request, TranscribeRequest) and request.audio is None

    def read(self, tenant_id: str, request: TranscribeRequest) -> TranscribeRequest:
        """Return the request with what its file holds.

        Raises NotFound if the tenant has no such file, InvalidRequest if it is not accepted, Unavailable.
        """
        try:
            file = files.get(self._db, tenant_id, request.input.file_id)
        except NotFound as error:
            error.param = _FILE_ID
            raise
        return request.with_audio(self.inspect(file, _FILE_ID))

    def inspect(self, file: File, param: str) -> AudioSource:
        """Return what a file holds. Raises InvalidRequest with ``param`` if it is not accepted, Unavailable."""
        with self._blobs.open(file.digest) as content:
            found = inspect(content, self._bounds, param)
        return AudioSource(
            content=file.digest, num_frames=found.num_frames, rate=found.rate, seconds=round(found.seconds, 3)
        )
