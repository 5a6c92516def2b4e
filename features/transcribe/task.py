"""The task ``transcribe``: an audio file in, its text and the times of its segments out."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, StringConstraints

from headrace.store.payloads.job_payload import JobOrder, PinnedPolicy, PolicyHit
from headrace.store.payloads.strict_model import Strict
from headrace.store.tasks.task_spec import TaskSpec

Language = Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}$")]
LANGUAGE_FIELD = "ISO 639-1 code of the language that is spoken, such as `en`; without it the model detects it"


class TranscribeInput(Strict):
    """The audio: an uploaded file in WAV, FLAC, OGG or MP3 (docs/audio.md)."""

    file_id: Annotated[str, StringConstraints(min_length=1, max_length=100)] = Field(
        description="the id of a file of `POST /v1/files`, of any purpose"
    )


class AudioSource(Strict):
    """The audio of a job as it was found when the job was accepted. ``content``: its name in the file storage."""

    content: str
    num_frames: int
    rate: int
    seconds: float


class TranscribeRequest(JobOrder):
    """The body of ``POST /v1/jobs`` for transcripts."""

    task: Literal["transcribe"]
    input: TranscribeInput
    language: Language | None = Field(None, description=LANGUAGE_FIELD)
    _audio: AudioSource | None = PrivateAttr(None)
    _sha256: str | None = PrivateAttr(None)

    @property
    def audio(self) -> AudioSource | None:
        """The audio, once its file was read."""
        return self._audio

    def with_audio(self, audio: AudioSource, sha256: str | None = None) -> Self:
        """Return the request with its audio. ``sha256``: of the audio, if it came with the request itself."""
        found = self.model_copy()
        found._audio, found._sha256 = audio, sha256  # noqa: SLF001 - a copy of this request
        return found

    def digest_fields(self) -> dict[str, Any]:
        """Return the digest of audio that came with the request: its file has another id each time."""
        return {} if self._sha256 is None else {"input": {"sha256": self._sha256}}


class TranscribePayload(Strict):
    """The part of a transcribe request that the worker needs, as stored in the job row."""

    file_id: str
    audio: AudioSource
    language: str | None = None
    policy: PinnedPolicy | None = None


class Segment(Strict):
    """A part of the transcript."""

    start: float = Field(description="seconds from the beginning of the audio")
    end: float = Field(description="seconds from the beginning of the audio")
    text: str


class TranscribeOutput(Strict):
    """The output of a transcribe job. ``language`` is absent if the model knows one language only."""

    text: str
    duration: float = Field(description="of the audio, in seconds")
    language: str | None = Field(None, description="ISO 639-1 code, given or detected")
    segments: tuple[Segment, ...] = Field(description="in order; their texts joined are the text")
    policy: tuple[PolicyHit, ...] | None = Field(None, description="what the policy's rules found in the text")


PART = TRANSCRIBE = TaskSpec(
    name="transcribe",
    request=TranscribeRequest,
    output=TranscribeOutput,
    runner="transcriber",
    fake_runner="fake-transcriber",
    urls=("/v1/audio/transcriptions",),
    form_bytes=lambda settings: settings.max_audio_bytes,
    purpose="transcribes audio: use /v1/audio/transcriptions, or the task transcribe",
    bulky_outputs=("segments",),
    file_example="speech.wav",
    examples={
        "transcript": {
            "summary": "A transcript of an uploaded file",
            "value": {
                "task": "transcribe",
                "model": "whisper",
                "input": {"file_id": "file_0197f0c2a3b47d518e9a2b6c7d8e9f01"},
                "language": "en",
            },
        },
    },
)
