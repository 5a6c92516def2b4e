"""The work of the task ``transcribe``: an audio file in, its transcript out, chunk by chunk.

    file ──▶ blocks ──▶ chunks of at most 30 s, cut at silences ──▶ engine, some chunks at once ──▶ a delta a chunk

A delta's token ids are the numbers of the chunk's transcript, from which the next attempt continues: it cuts the same
chunks, and computes those that have no delta yet. No more than the chunks of one pass are in memory.
"""

import struct
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import structlog

from headrace.features.files import files
from headrace.features.files.blob_storage import Blobs, open_blobs
from headrace.features.transcribe.audio_file import read_mono
from headrace.features.transcribe.cutting import Chunk, chunks, resampled
from headrace.features.transcribe.fake_transcriber import FakeTranscriber
from headrace.features.transcribe.inputs import settings_for
from headrace.features.transcribe.task import TRANSCRIBE, Segment, TranscribeOutput, TranscribePayload
from headrace.features.transcribe.transcriber_folder import TranscriberSettings
from headrace.features.transcribe.transcription import ChunkOptions, ChunkTranscript
from headrace.models.engine.encoder_engine import EncodeConfig, EncodeEngine
from headrace.models.engine.protocol import AnyEngine
from headrace.models.engine.requests import Delta, EncodeOutput, EncodeRequest, EngineError, FinishReason
from headrace.models.engine.runner import Encoder
from headrace.models.loading.load import checked_folder, number_format, with_encoder_faults
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.prompts.tokenizer import Tokenizer, tokenizer_for
from headrace.store.errors import NotFound
from headrace.store.jobs.claims import Finish
from headrace.store.payloads.job_payload import Usage, read_payload
from headrace.store.registry.models import ModelVersion
from headrace.store.registry.verification_report import GoldenAnswer
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.streams.checkpoints import Checkpoint
from headrace.workers.runs import outcome
from headrace.workers.runs.checkpoint_recovery import CheckpointRecovery
from headrace.workers.runs.in_flight import Attempt
from headrace.workers.runs.job_runner import EngineClient
from headrace.workers.runs.outcome import STATES, Retry
from headrace.workers.runs.output_guard import FilteredOutput, OutputGuard, open_guards
from headrace.workers.tasks.self_test import SelfTest, run_all
from headrace.workers.tasks.task_model import EngineSetup, ModelPart, TaskModel, WorkContext, quiet_setup

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Transcript:
    """A transcript as it grows. ``deltas`` and ``numbers`` have one entry a chunk, ``segments`` those of all chunks."""

    tokenizer: Tokenizer
    start: Checkpoint
    deltas: list[str] = field(default_factory=list)
    numbers: list[tuple[int, ...]] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    language_id: int = 0
    num_tokens: int = 0
    first_text_s: float | None = None
    _has_text: bool = False

    def add(self, start_s: float, end_s: float, found: ChunkTranscript) -> str:
        """Add the transcript of the next chunk, which is between two times of the audio; return its text."""
        texts: list[str] = []
        for one in found.segments:
            text = self.tokenizer.decode(one.tokens)
            text = text if self._has_text else text.lstrip()
            self._has_text = self._has_text or bool(text)
            begin, end = (min(end_s, start_s + at / 1000) for at in (one.start_ms, one.end_ms))
            self.segments.append(Segment(start=round(begin, 3), end=round(end, 3), text=text))
            self.num_tokens += len(one.tokens)
            texts.append(text)
        self.language_id = self.language_id or found.language_id
        self.deltas.append("".join(texts))
        self.numbers.append(found.numbers)
        return self.deltas[-1]

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What another attempt continues from; None if there is nothing yet."""
        if not self.deltas:
            return None
        deltas, numbers = tuple(self.deltas), tuple(self.numbers)
        return Checkpoint(deltas, numbers, self.start.lineage, first_token_s=self.first_text_s)


class Transcribing:
    """Transcribes for jobs of one model version. ``compute`` is called from many threads at once."""

    def __init__(self, model: "TranscribeModel", engine: AnyEngine, context: WorkContext) -> None:
        self._model = model
        self._settings = model.settings
        self._engine: EngineClient[EncodeRequest, EncodeOutput] = EngineClient(
            engine, context.admission, context.in_flight, context.spans
        )
        self._frames = context.frames
        self._recovery = CheckpointRecovery(context.fenced_logs)
        self._guards = open_guards(context.db)
        self._db = context.db
        self._metrics = context.metrics

    def compute(self, attempt: Attempt) -> Finish | Retry:
        """Transcribe the job's file. Raises InvalidRequest for a damaged one, NotFound for one that was deleted."""
        payload = read_payload(TranscribePayload, attempt.claim.payload)
        pinned = payload.policy
        rules = None if pinned is None else self._guards.output(attempt.claim.tenant_id, pinned, None)
        is_guarded = rules is not None and rules.holds_back
        transcript = self._begin(attempt, is_guarded=is_guarded)
        if rules is not None and is_guarded:
            self._frames.put_filter(attempt.id, rules.stream_filter(lambda: self._engine.cancel(attempt)))
        began_at = time.monotonic()
        try:
            reason = self._run(attempt, payload, transcript)
            verdict = self._ended(attempt, payload, transcript, reason, rules, time.monotonic() - began_at)
        except EngineError as error:
            verdict = outcome.refused(attempt.claim, error, transcript.checkpoint)
        # The model's own text of a guarded attempt must not be stored, so the next attempt starts anew.
        return replace(verdict, checkpoint=None) if is_guarded and isinstance(verdict, Retry) else verdict

    def _begin(self, attempt: Attempt, *, is_guarded: bool) -> Transcript:
        """Return the transcript as earlier attempts left it. After the first attempt readers are told of its start."""
        if attempt.epoch == 1:
            self._metrics.times[attempt.claim.class_rank].queue.observe(attempt.claim.queued_s)
            return Transcript(self._model.tokenizer, Checkpoint(lineage=((1, 0),)))
        age_s = attempt.claim.queued_s + time.monotonic() - attempt.claimed_at
        known = Checkpoint() if is_guarded else self._recovery.checkpoint(attempt.claim, age_s)
        if not _is_sound(known, self._model.tokenizer):
            log.warning("attempt_restarts", reason="the numbers of a chunk do not make its text")
            known = Checkpoint()
        start = known.continued_by(attempt.epoch)
        self._frames.put_start(attempt.id, start)
        return Transcript(self._model.tokenizer, start, first_text_s=start.first_token_s)

    def _run(self, attempt: Attempt, payload: TranscribePayload, transcript: Transcript) -> FinishReason:
        """Add every chunk to the transcript; return STOP at the end of the audio, else why it ended before."""
        audio = payload.audio
        known = transcript.start.token_ids
        with closing(self._open(attempt, payload)) as content:
            pieces = chunks(read_mono(content, audio.num_frames), audio.rate, self._settings.window_s)
            for chunk, numbers in zip(islice(pieces, len(known)), known, strict=True):
                transcript.add(*_times(chunk, audio.rate), ChunkTranscript.of(numbers))
            while window := list(islice(pieces, self._num_next(payload, transcript))):
                language = payload.language or self._settings.languages.get(transcript.language_id)
                found = self._computed(attempt, window, audio.rate, language)
                if isinstance(found, FinishReason):
                    return found
                self._show(attempt, transcript, window, audio.rate, found)
        return FinishReason.STOP

    def _open(self, attempt: Attempt, payload: TranscribePayload) -> Any:
        try:
            file = files.get(self._db, attempt.claim.tenant_id, payload.file_id)
        except NotFound:
            message = f"the file {payload.file_id} was deleted, or has expired, before its transcript was complete"
            raise NotFound(message, code="file_gone") from None
        return self._model.blobs.open(file.digest)

    def _num_next(self, payload: TranscribePayload, transcript: Transcript) -> int:
        """Return how many chunks are computed next: the first one alone if it is to tell the language."""
        is_known = payload.language or transcript.language_id or not self._settings.languages
        return self._model.chunks_at_once if is_known else 1

    def _computed(
        self, attempt: Attempt, window: Sequence[Chunk], rate: int, language: str | None
    ) -> Iterable[ChunkTranscript] | FinishReason:
        """Return the transcript of each chunk, or why the engine ended before. Silent chunks are not computed."""
        sounding = [chunk for chunk in window if not chunk.is_silent]
        if not sounding:
            return [ChunkTranscript() for _ in window]
        samples = tuple(
            resampled(chunk.samples, rate, self._settings.rate).astype("<f4").tobytes() for chunk in sounding
        )
        request = EncodeRequest(
            attempt.id,
            ((0,) * self._settings.num_positions,) * len(samples),
            ChunkOptions(samples, language),
            attempt.deadline,
            class_rank=attempt.claim.class_rank,
        )
        encoded = self._engine.run(attempt, request, num_prompt=request.num_tokens, max_tokens=0)
        self._metrics.times[attempt.claim.class_rank].prefill.observe(encoded.total_s)
        if encoded.finish_reason is not FinishReason.STOP:
            return encoded.finish_reason
        found = iter(encoded.vectors)
        return [ChunkTranscript() if one.is_silent else ChunkTranscript.from_bytes(next(found)) for one in window]

    def _show(
        self,
        attempt: Attempt,
        transcript: Transcript,
        window: Sequence[Chunk],
        rate: int,
        found: Iterable[ChunkTranscript],
    ) -> None:
        deltas = []
        for chunk, one in zip(window, found, strict=True):
            text = transcript.add(*_times(chunk, rate), one)
            deltas.append(Delta(attempt.id, len(transcript.deltas), text, transcript.numbers[-1]))
        if transcript.first_text_s is None:
            transcript.first_text_s = attempt.claim.queued_s + time.monotonic() - attempt.claimed_at
        self._frames.put_deltas(deltas)

    def _ended(
        self,
        attempt: Attempt,
        payload: TranscribePayload,
        transcript: Transcript,
        reason: FinishReason,
        rules: OutputGuard | None,
        took_s: float,
    ) -> Finish | Retry:
        claim = attempt.claim
        if reason is FinishReason.HANDED_BACK:
            return outcome.handed_back(cleared=False, checkpoint=transcript.checkpoint)
        deltas = tuple(transcript.deltas)
        filtered = FilteredOutput("".join(deltas), deltas) if rules is None else rules.apply(deltas)
        used = Usage(
            input_tokens=self._settings.tokens_of(payload.audio.seconds),
            output_tokens=transcript.num_tokens,
            queue_ms=claim.queued_s * 1000,
            first_token_ms=None if transcript.first_text_s is None else transcript.first_text_s * 1000,
            compute_ms=took_s * 1000,
        ).model_dump()
        if filtered.blocked_by is not None:
            return outcome.blocked(claim, filtered.blocked_by, used)
        state = STATES[reason]
        return Finish(
            job_id=claim.job_id,
            epoch=claim.epoch,
            state=state,
            output=self._output(payload, transcript, filtered),
            error=outcome.expiry_error(claim) if state is JobState.EXPIRED else None,
            usage=used,
            deltas=filtered.pieces,
            lineage=transcript.start.lineage,
            tenant_id=claim.tenant_id,
        )

    def _output(self, payload: TranscribePayload, transcript: Transcript, filtered: FilteredOutput) -> dict[str, Any]:
        duration = round(payload.audio.seconds, 3)
        segments = tuple(transcript.segments)
        if filtered.text != "".join(transcript.deltas):
            # A rule may have taken out what begins in one segment and ends in the next.
            segments = (Segment(start=0.0, end=duration, text=filtered.text),)
        made = TranscribeOutput(
            text=filtered.text,
            duration=duration,
            language=payload.language or self._settings.languages.get(transcript.language_id),
            segments=segments,
            policy=filtered.hits or None,
        )
        return made.model_dump(mode="json", exclude_none=True)


def _times(chunk: Chunk, rate: int) -> tuple[float, float]:
    return chunk.start_s, chunk.start_s + len(chunk.samples) / rate


def _is_sound(known: Checkpoint, tokenizer: Tokenizer) -> bool:
    """Return True if the numbers of each delta make its text."""
    made = Transcript(tokenizer, Checkpoint())
    try:
        for text, numbers in zip(known.deltas, known.token_ids, strict=True):
            if made.add(0.0, 0.0, ChunkTranscript.of(numbers)) != text:
                return False
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class TranscribeModel(TaskModel):
    """A model version that transcribes. ``blobs``: where the audio lies; ``chunks_at_once``: of a pass."""

    version: ModelVersion
    encoder: Encoder
    tokenizer: Tokenizer
    settings: TranscriberSettings
    blobs: Blobs
    chunks_at_once: int

    def new_engine(self, setup: EngineSetup) -> EncodeEngine:
        """Return an engine whose passes have chunks of many jobs."""
        step_tokens, gives_way = self.chunks_at_once * self.settings.num_positions, setup.settings.encode_gives_way
        config = EncodeConfig(setup.num_slots, step_tokens, gives_way=gives_way)
        return EncodeEngine(self.encoder, config, on_room=setup.on_room, on_failed=setup.on_failed)

    def new_work(self, engine: AnyEngine, context: WorkContext) -> Transcribing:
        """Return the work for the jobs of this model."""
        return Transcribing(self, engine, context)

    def self_test(self, settings: Settings, golden: Sequence[GoldenAnswer]) -> SelfTest:
        """Transcribe a second of a quiet saw. A transcript has no golden answers."""
        saw = (_saw(self.settings.rate),)
        request = EncodeRequest("self-test", ((0,) * self.settings.num_positions,), ChunkOptions(saw))
        _, took_s = run_all(self.new_engine(quiet_setup(settings, 1)), [request])
        return SelfTest(
            dtype=number_format(self.version, settings),
            tokens_per_s=request.num_tokens / took_s,
            context_tokens=self.encoder.context_window,
        )


def _saw(num_samples: int) -> bytes:
    return struct.pack(f"<{num_samples}f", *((at % 100 - 50) / 1000 for at in range(num_samples)))


def load_transcribe_model(version: ModelVersion, settings: Settings, read_file: ReadFile) -> TranscribeModel:
    """Load a model that transcribes."""
    tokenizer, found = tokenizer_for(version, read_file), settings_for(version, read_file)
    encoder = with_encoder_faults(_load_encoder(version, settings), settings, lambda _row: "")
    return TranscribeModel(version, encoder, tokenizer, found, open_blobs(settings), settings.transcribe_chunks)


def _load_encoder(version: ModelVersion, settings: Settings) -> Encoder:
    if version.is_fake:
        return FakeTranscriber(step_s=settings.fake_step_ms / 1000)
    folder = checked_folder(version)
    from headrace.features.transcribe.torch_transcriber import (  # noqa: PLC0415 - a worker of a fake has no torch
        transcriber_for,
    )

    return transcriber_for(folder, settings, dtype=version.dtype)


PART = ModelPart(TRANSCRIBE, load_transcribe_model)
