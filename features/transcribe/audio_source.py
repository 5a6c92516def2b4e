"""The audio of a transcription: a tenant's file, whose header is read before a job is made of it."""

from headrace.features.files import files
from headrace.features.files.blob_storage import Blobs, open_blobs
from headrace.features.files.files import File
from headrace.features.transcribe.task import AudioSource, TranscribeRequest
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.settings import Settings

_FILE_ID = "input.file_id"


def with_audio(request: TranscribeRequest, tenant_id: str, settings: Settings, db: Database) -> TranscribeRequest:
    """Return the request with what its file holds. Blocks.

    Raises NotFound if the tenant has no such file, InvalidRequest if it is not accepted, Unavailable.
    """
    if request.audio is not None:
        return request
    try:
        file = files.get(db, tenant_id, request.input.file_id)
    except NotFound as error:
        error.param = _FILE_ID
        raise
    return request.with_audio(audio_of(file, open_blobs(settings, db.seal), settings, _FILE_ID))


def audio_of(file: File, blobs: Blobs, settings: Settings, param: str) -> AudioSource:
    """Return what a file holds. Blocks. Raises InvalidRequest with ``param`` if it is not accepted, Unavailable."""
    try:
        from headrace.features.transcribe.audio_file import AudioBounds, inspect  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            f"this server reads no audio, because {error.name} is missing: install Headrace with the extra `audio`",
            code="unsupported_audio",
            param=param,
        ) from None
    bounds = AudioBounds(settings.max_audio_s, most_channels=8, least_hz=8000, most_hz=192_000)
    with blobs.open(file.digest) as content:
        found = inspect(content, bounds, param)
    return AudioSource(
        content=file.digest, num_frames=found.num_frames, rate=found.rate, seconds=round(found.seconds, 3)
    )
