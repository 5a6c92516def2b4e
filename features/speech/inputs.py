"""Requests for speech: a text that has something to say, and a voice that the model has."""

from typing import TYPE_CHECKING

from headrace.features.speech.sentences import pieces_of, seconds_of
from headrace.features.speech.task import MOST_CHARS, SLOWEST, SPEECH, SpeechPayload, SpeechRequest, tokens_of
from headrace.features.speech.voice_folder import FAKE, VoiceSettings, is_voice, read_voice
from headrace.prompts.tasks.task_inputs import InputModel, Prepared, ReadFile, TaskInputs
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import PinnedPolicy

if TYPE_CHECKING:
    from headrace.store.registry.models import ModelVersion

_MOST_TOKENS = tokens_of(seconds_of("水" * MOST_CHARS) / SLOWEST)


def settings_for(version: "ModelVersion", read_file: ReadFile) -> VoiceSettings:
    """Return the settings of a registered voice."""
    if version.is_fake:
        return FAKE
    config = read_voice(read_file(version.files["config.json"]))
    return VoiceSettings(config.voices, config.sample_rate)


def prepare(request: SpeechRequest, model: InputModel, _policy: PinnedPolicy | None) -> Prepared:
    """Return the payload and the cost, by the seconds that the text foretells. A policy changes nothing in sound."""
    settings: VoiceSettings = model.settings
    voice = settings.voices[0] if request.voice is None else request.voice
    if voice not in settings.voices:
        known = ", ".join(settings.voices)
        raise InvalidRequest(f"the model has no voice {voice!r}: it has {known}", param="voice")
    text = request.input.text
    if not pieces_of(text):
        raise InvalidRequest("the text has no letter or digit: there is nothing to say", param="input.text")
    payload = SpeechPayload(text=text, voice=voice, response_format=request.response_format, speed=request.speed)
    return Prepared(payload, tokens_of(seconds_of(text) / request.speed))


PART = TaskInputs(
    spec=SPEECH,
    prepare=prepare,
    cut_to_length=lambda request, _model: request,
    is_quick=lambda _request, _model: True,
    read_settings=settings_for,
    is_folder=is_voice,
    folder_window=lambda files: _MOST_TOKENS if read_voice(files["config.json"]) else 0,
    has_any_files=True,
    has_tokenizer=lambda _config: False,
)
