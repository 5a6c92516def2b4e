"""The blob storage of one API process, and the duties of files."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from headrace.features.files.attempt_states import AttemptStates
from headrace.features.files.blob_storage import Blobs, open_blobs
from headrace.features.files.file_duties import file_duties
from headrace.producer_api.api_part import ApiWork
from headrace.producer_api.runtime import Runtime


class FileWork(ApiWork):
    """The blob storage, which is opened once, and the duties. Raises SettingsError for an unknown kind of storage."""

    def __init__(self, runtime: Runtime) -> None:
        self.blobs = open_blobs(runtime.settings, runtime.db.seal)
        states = AttemptStates(runtime.settings, runtime.db.seal)
        self.duties = file_duties(runtime.duties_db, self.blobs, states)


async def _blobs(request: Request) -> Blobs:
    work: FileWork = request.app.state.works[FileWork]
    return work.blobs


BlobsOf = Annotated[Blobs, Depends(_blobs)]
