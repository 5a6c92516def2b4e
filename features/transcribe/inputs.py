"""Requests for transcripts: audio whose file was read, and a language that the model knows."""

import re
from typing import TYPE_CHECKING

from headrace.features.transcribe.audio_source import with_audio
from headrace.features.transcribe.task import TRANSCRIBE, TranscribePayload, TranscribeRequest
from headrace.features.transcribe.transcriber_folder import (
    FAKE,
    GENERATION,
    PREPROCESSOR,
    TranscriberSettings,
    is_transcriber,
    read_transcriber,
)
from headrace.prompts.tasks.task_inputs import InputModel, Prepared, ReadFile, TaskInputs
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import PinnedPolicy

if TYPE_CHECKING:
    from headrace.store.registry.models import ModelVersion

_FILES = ("config.json", GENERATION, PREPROCESSOR)


def settings_for(version: "ModelVersion", read_file: ReadFile) -> TranscriberSettings:
    """Return the settings of a registered transcriber."""
    if version.is_fake:
        return FAKE
    return read_transcriber({name: read_file(version.files[name]) for name in _FILES if name in version.files})


def prepare(request: TranscribeRequest, model: InputModel, policy: PinnedPolicy | None) -> Prepared:
    """Return the payload and the cost: the positions of the audio in the encoder. Raises InvalidRequest."""
    check_language(request, model)
    if request.audio is None:
        raise ValueError("the file of the audio was not read")
    payload = TranscribePayload(
        file_id=request.input.file_id, audio=request.audio, language=request.language, policy=policy
    )
    return Prepared(payload, model.settings.tokens_of(request.audio.seconds))


def check_language(request: TranscribeRequest, model: InputModel) -> TranscribeRequest:
    """Return the request; raise InvalidRequest if the model does not know its language."""
    known = sorted(model.settings.languages.values()) or ["en"]
    if request.language is not None and request.language not in known:
        names = ", ".join(known)
        raise InvalidRequest(f"the model does not know {request.language!r}: it knows {names}", param="language")
    return request


PART = TaskInputs(
    spec=TRANSCRIBE,
    prepare=prepare,
    cut_to_length=check_language,
    is_quick=lambda request, _model: request.audio is not None,
    read_settings=settings_for,
    is_folder=is_transcriber,
    unfit_classes=re.compile(r"For(?!ConditionalGeneration)[A-Z]"),
    complete=with_audio,
    folder_files=(PREPROCESSOR,),
    folder_window=lambda files: read_transcriber(files).num_positions,
)
