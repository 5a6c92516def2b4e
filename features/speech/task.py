"""The task ``speech``: a text in, its sound as a file out."""

from collections.abc import Mapping
from enum import StrEnum
from math import ceil
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints

from headrace.store.payloads.job_payload import JobOrder
from headrace.store.payloads.strict_model import Strict
from headrace.store.tasks.task_spec import TaskSpec

MOST_CHARS = 4096
"""Of a text, as OpenAI has it."""


class SoundFormat(StrEnum):
    """The format of the sound. All have one channel; ``pcm`` is little-endian 16-bit samples without a header."""

    MP3 = "mp3"
    OPUS = "opus"
    WAV = "wav"
    FLAC = "flac"
    PCM = "pcm"


TOKENS_PER_S: Final = 10
"""Of sound, for limits, prices and fairness."""

SLOWEST: Final = 0.25

MEDIA_TYPES: Final[Mapping[SoundFormat, str]] = {
    SoundFormat.MP3: "audio/mpeg",
    SoundFormat.OPUS: "audio/ogg",
    SoundFormat.WAV: "audio/wav",
    SoundFormat.FLAC: "audio/flac",
    SoundFormat.PCM: "audio/pcm",
}

SpeechText = Annotated[str, StringConstraints(min_length=1, max_length=MOST_CHARS)]
VoiceName = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Voice = Annotated[VoiceName | None, Field(description="one of the model's voices; null: its first one")]
Format = Annotated[SoundFormat, Field(description="the format of the sound")]
Speed = Annotated[float, Field(ge=SLOWEST, le=4, description="1 is the voice's own speed")]


class SpeechInput(Strict):
    """The text to say."""

    text: SpeechText = Field(description=f"at most {MOST_CHARS} characters")


class SpeechRequest(JobOrder):
    """The body of ``POST /v1/jobs`` for speech."""

    task: Literal["speech"]
    input: SpeechInput
    voice: Voice = None
    response_format: Format = SoundFormat.MP3
    speed: Speed = 1.0

    def fixed_texts(self) -> tuple[str, ...]:
        """Return the voice, which cannot have a placeholder."""
        return () if self.voice is None else (self.voice,)


class SpeechPayload(Strict):
    """The part of a speech request that the worker needs, as stored in the job row."""

    text: str
    voice: str
    response_format: SoundFormat
    speed: float


class SpeechOutput(Strict):
    """The output of a speech job. Its one file is the sound."""

    seconds: float = Field(description="how long the sound is")
    characters: int = Field(description="of the text")
    voice: str
    files: tuple[dict[str, Any], ...] = Field((), description="the sound, as docs/result-files.md says")


def tokens_of(seconds: float) -> int:
    """Return the cost of sound, at least 1."""
    return max(1, ceil(seconds * TOKENS_PER_S))


PART = SPEECH = TaskSpec(
    name="speech",
    request=SpeechRequest,
    output=SpeechOutput,
    runner="voice",
    fake_runner="fake-voice",
    urls=("/v1/audio/speech",),
    purpose="speaks: use /v1/audio/speech, or the task speech",
    has_progress=True,
    cost_is_time=True,
    delta_field="audio",
    url_example={"input": "こんにちは。今日はとても良い天気です。"},
    answer_file="speech.mp3",
    examples={
        "speech": {
            "summary": "A text as sound",
            "value": {
                "task": "speech",
                "model": "kokoro",
                "input": {"text": "こんにちは。今日はとても良い天気です。"},
                "response_format": "mp3",
            },
        },
    },
)
