"""The work of the task ``speech``: a text in, its sound as a file out, piece by piece.

    text ──▶ pieces ──▶ engine, one piece a pass ──▶ a delta a piece ──▶ the file

A delta is a FLAC file of its piece (``sound.as_delta``), so the next attempt has the samples again and says the pieces
that have no delta yet. The file is made of the same samples whichever attempt made them. Deltas are in Redis while the
job runs, at most ``MOST_STREAMED`` of a job, and no part of its stored output: the file has all of the sound.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from headrace.assembly import parts
from headrace.features.speech.fake_voice import FakeVoice
from headrace.features.speech.inputs import settings_for
from headrace.features.speech.saying import PIECE_TOKENS, Saying, Telling, Voice, VoiceEncoder
from headrace.features.speech.sentences import pieces_of
from headrace.features.speech.server_voice import ServerVoice
from headrace.features.speech.sound import as_delta, encoded, num_samples, of_delta, silence
from headrace.features.speech.task import MEDIA_TYPES, SPEECH, SpeechOutput, SpeechPayload, tokens_of
from headrace.features.speech.voice_folder import KokoroConfig, ServerConfig, VoiceSettings, read_voice
from headrace.models.engine.call_engine import CallEngine
from headrace.models.engine.encoder_engine import EncodeConfig, EncodeEngine
from headrace.models.engine.protocol import AnyEngine
from headrace.models.engine.requests import Delta, EncodeOutput, EncodeRequest, EngineError, FinishReason
from headrace.models.engine.runner import Encoder
from headrace.models.loading.load import checked_folder, with_encoder_faults
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.store.errors import CannotLoadHere
from headrace.store.jobs.claims import Claim, Finish
from headrace.store.payloads.job_payload import Usage, read_payload
from headrace.store.registry.models import ModelVersion
from headrace.store.registry.verification_report import GoldenAnswer
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.streams.checkpoints import Checkpoint
from headrace.store.streams.stream_log import Progress
from headrace.workers.runs import outcome
from headrace.workers.runs.checkpoint_recovery import CheckpointRecovery
from headrace.workers.runs.in_flight import Attempt
from headrace.workers.runs.job_runner import EngineClient
from headrace.workers.runs.outcome import STATES, Retry
from headrace.workers.runs.result_files import ResultDrafts, ResultsPart
from headrace.workers.tasks.encoding import new_call_engine
from headrace.workers.tasks.self_test import SelfTest, run_all
from headrace.workers.tasks.task_model import EngineSetup, ModelPart, TaskModel, WorkContext, quiet_setup

log = structlog.get_logger(__name__)

MOST_STREAMED: Final = 8 << 20
"""Characters of the deltas of a job: about five minutes of sound. What follows is in the file alone."""

_PAUSE_S: Final = 0.35
_SHORT_PAUSE_S: Final = 0.1
"""After a piece that is not the end of a sentence."""

_LONGEST_S: Final = 3600.0
"""Of a text that a server says, piece by piece."""

_PASS_S: Final = 0.001
"""Less than any piece takes, so that no pass has two."""

_SLOTS: Final = 4
_TOLD_EVERY_S: Final = 0.4


@dataclass(slots=True)
class Speech:
    """Sound as it grows. ``deltas`` and ``numbers`` have an entry for each piece that was shown."""

    start: Checkpoint
    rate: int
    pcm: bytearray = field(default_factory=bytearray)
    num_said: int = 0
    deltas: list[str] = field(default_factory=list)
    numbers: list[tuple[int, ...]] = field(default_factory=list)
    num_chars: int = 0
    first_sound_s: float | None = None
    told_at: float = 0.0

    def add(self, pcm: bytes, delta: str | None = None) -> bool:
        """Add the samples of the next piece; return whether it has a delta. ``delta``: as it was shown before."""
        self.pcm += pcm
        self.num_said += 1
        if self.num_chars > MOST_STREAMED:
            return False
        shown = as_delta(pcm, self.rate) if delta is None else delta
        self.num_chars += len(shown)
        if self.num_chars > MOST_STREAMED:
            return False
        self.deltas.append(shown)
        self.numbers.append((num_samples(pcm),))
        return True

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What another attempt continues from; None if there is nothing yet."""
        if not self.deltas:
            return None
        deltas, numbers = tuple(self.deltas), tuple(self.numbers)
        return Checkpoint(deltas, numbers, self.start.lineage, first_token_s=self.first_sound_s)


class _Hearing:
    """Passes samples on until its request has ended: a call that was left behind may come back later."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._lock = threading.Lock()
        self._is_over = False

    def hear(self, samples: bytes) -> None:
        with self._lock:
            if not self._is_over:
                self._take(samples)

    def is_over(self) -> bool:
        return self._is_over

    def end(self) -> None:
        with self._lock:
            self._is_over = True


class Speaking:
    """Speaks for jobs of one model version. ``compute`` is called from many threads at once."""

    def __init__(self, model: "SpeechModel", engine: AnyEngine, context: WorkContext) -> None:
        self._rate = model.settings.rate
        self._engine: EngineClient[EncodeRequest, EncodeOutput] = EngineClient(
            engine, context.admission, context.in_flight, context.spans
        )
        self._frames = context.frames
        self._recovery = CheckpointRecovery(context.fenced_logs)
        self._db = context.db
        self._metrics = context.metrics
        (files,) = parts("results", ResultsPart)
        self._open_drafts = files.open(context.settings, context.db)

    def compute(self, attempt: Attempt) -> Finish | Retry:
        """Say the job's text. Raises InvalidRequest for a payload that cannot be read, and why there is no file."""
        payload = read_payload(SpeechPayload, attempt.claim.payload)
        pieces = pieces_of(payload.text)
        speech = self._begin(attempt, len(pieces))
        drafts = self._open_drafts(self._db, attempt.claim)
        began_at = time.monotonic()
        try:
            reason = self._run(attempt, payload, pieces, speech)
            return self._ended(attempt, payload, speech, reason, drafts, time.monotonic() - began_at)
        except EngineError as error:
            return outcome.refused(attempt.claim, error, speech.checkpoint)
        finally:
            drafts.drop()

    def _begin(self, attempt: Attempt, num_pieces: int) -> Speech:
        """Return the speech as earlier attempts left it. After the first attempt readers are told of its start."""
        if attempt.epoch == 1:
            self._metrics.times[attempt.claim.class_rank].queue.observe(attempt.claim.queued_s)
            return Speech(Checkpoint(lineage=((1, 0),)), self._rate)
        age_s = attempt.claim.queued_s + time.monotonic() - attempt.claimed_at
        known = self._recovery.checkpoint(attempt.claim, age_s)
        try:
            said = [of_delta(delta, self._rate) for delta in known.deltas]
            if len(said) > num_pieces or [(num_samples(one),) for one in said] != list(known.token_ids):
                raise ValueError("the samples of a piece are not those that were counted")
        except ValueError as error:
            log.warning("attempt_restarts", reason=str(error))
            known, said = Checkpoint(), []
        speech = Speech(known.continued_by(attempt.epoch), self._rate)
        speech.first_sound_s = speech.start.first_token_s
        for pcm, delta in zip(said, known.deltas, strict=True):
            speech.add(pcm, delta)
        self._frames.put_start(attempt.id, speech.start)
        return speech

    def _run(self, attempt: Attempt, payload: SpeechPayload, pieces: list[str], speech: Speech) -> FinishReason:
        """Say every piece that is left; return STOP at the end of the text, else why it ended before."""
        left = tuple(Saying(piece, payload.voice, payload.speed) for piece in pieces[speech.num_said :])
        if not left:
            return FinishReason.STOP
        hearing = _Hearing(lambda samples: self._heard(attempt, payload, pieces, speech, samples))
        request = EncodeRequest(
            attempt.id,
            ((0,) * PIECE_TOKENS,) * len(left),
            Telling(left, hearing.hear, hearing.is_over),
            attempt.deadline,
            class_rank=attempt.claim.class_rank,
        )
        try:
            found = self._engine.run(attempt, request, num_prompt=PIECE_TOKENS, max_tokens=0)
        finally:
            hearing.end()
        self._metrics.times[attempt.claim.class_rank].prefill.observe(found.total_s)
        return found.finish_reason

    def _heard(
        self, attempt: Attempt, payload: SpeechPayload, pieces: list[str], speech: Speech, samples: bytes
    ) -> None:
        """Take the samples of the next piece. The engine's thread calls it."""
        number = speech.num_said + 1
        pause = b"" if number == len(pieces) else self._pause(pieces[number - 1], payload.speed)
        if speech.add(samples + pause):
            self._show(attempt, speech)
        now = time.monotonic()
        if number == len(pieces) or now - speech.told_at > _TOLD_EVERY_S:
            speech.told_at = now
            self._frames.put_progress(attempt.id, Progress(number, len(pieces), "speaking"))

    def _pause(self, piece: str, speed: float) -> bytes:
        return silence((_PAUSE_S if piece[-1] in "。．.！？!?」』”" else _SHORT_PAUSE_S) / speed, self._rate)

    def _show(self, attempt: Attempt, speech: Speech) -> None:
        if speech.first_sound_s is None:
            speech.first_sound_s = attempt.claim.queued_s + time.monotonic() - attempt.claimed_at
        number = len(speech.deltas)
        self._frames.put_deltas([Delta(attempt.id, number, speech.deltas[-1], speech.numbers[-1])])

    def _ended(
        self,
        attempt: Attempt,
        payload: SpeechPayload,
        speech: Speech,
        reason: FinishReason,
        drafts: ResultDrafts,
        took_s: float,
    ) -> Finish | Retry:
        claim = attempt.claim
        if reason is FinishReason.HANDED_BACK:
            return outcome.handed_back(cleared=False, checkpoint=speech.checkpoint)
        state, output, rows = STATES[reason], None, None
        if state is JobState.SUCCEEDED:
            kind, seconds = payload.response_format, round(num_samples(speech.pcm) / self._rate, 3)
            content = encoded(bytes(speech.pcm), self._rate, kind)
            drafts.add(f"speech.{kind}", content, MEDIA_TYPES[kind], {"seconds": seconds})
            shown, rows = drafts.keep()
            said = SpeechOutput(
                seconds=seconds, characters=len(payload.text), voice=payload.voice, files=tuple(map(dict, shown))
            )
            output = said.model_dump(mode="json")
        return Finish(
            job_id=claim.job_id,
            epoch=claim.epoch,
            state=state,
            output=output,
            error=outcome.expiry_error(claim) if state is JobState.EXPIRED else None,
            usage=_usage(claim, speech, took_s),
            deltas=(),
            tenant_id=claim.tenant_id,
            stored=rows,
        )


def _usage(claim: Claim, speech: Speech, took_s: float) -> dict[str, Any]:
    return Usage(
        input_tokens=tokens_of(num_samples(speech.pcm) / speech.rate) if speech.pcm else 0,
        output_tokens=0,
        queue_ms=claim.queued_s * 1000,
        first_token_ms=None if speech.first_sound_s is None else speech.first_sound_s * 1000,
        compute_ms=took_s * 1000,
    ).model_dump()


@dataclass(frozen=True, slots=True)
class SpeechModel(TaskModel):
    """A model version that speaks. ``is_server``: its voice is a server's, which says many pieces at once."""

    version: ModelVersion
    encoder: Encoder
    settings: VoiceSettings
    is_server: bool = False

    @property
    def default_settings(self) -> dict[str, int]:
        """A core says one piece at a time: few jobs at once, so that each gets on. A server decides itself."""
        return {} if self.is_server else {"max_slots": _SLOTS}

    def new_engine(self, setup: EngineSetup) -> EncodeEngine | CallEngine:
        """Return an engine whose passes are pieces of many jobs in turn, or calls."""
        if self.is_server:
            return new_call_engine(self.encoder, setup, _LONGEST_S)
        # A step is a piece of the oldest job and one of the best other, and each is a pass of its own.
        config = EncodeConfig(setup.num_slots, 2 * PIECE_TOKENS, _PASS_S)
        return EncodeEngine(self.encoder, config, on_room=setup.on_room, on_failed=setup.on_failed)

    def new_work(self, engine: AnyEngine, context: WorkContext) -> Speaking:
        """Return the work for the jobs of this model."""
        return Speaking(self, engine, context)

    def self_test(self, settings: Settings, golden: Sequence[GoldenAnswer]) -> SelfTest:
        """Say a word. Sound has no golden answers. A server may be away, so it is not asked."""
        if self.is_server:
            return SelfTest()
        word = Saying("こんにちは。", self.settings.voices[0], 1.0)
        telling = Telling((word,), lambda _samples: None, lambda: False)
        request = EncodeRequest("self-test", ((0,) * PIECE_TOKENS,), telling)
        _, took_s = run_all(self.new_engine(quiet_setup(settings, 1)), [request])
        return SelfTest(tokens_per_s=len(word.text) / took_s)


def load_speech_model(version: ModelVersion, settings: Settings, read_file: ReadFile) -> SpeechModel:
    """Load a voice. Raises ModelLoadError; CannotLoadHere without the libraries of the extra."""
    voice, is_server = _load_voice(version, settings)
    found = settings_for(version, read_file)
    return SpeechModel(version, with_encoder_faults(VoiceEncoder(voice), settings, lambda _row: ""), found, is_server)


def _load_voice(version: ModelVersion, settings: Settings) -> tuple[Voice, bool]:
    if version.is_fake:
        return FakeVoice(step_s=settings.fake_step_ms / 1000), False
    folder = checked_folder(version)
    config = read_voice((folder / "config.json").read_bytes())
    if isinstance(config, ServerConfig):
        return ServerVoice(config, settings), True
    return _load_kokoro(folder, config, settings), False


def _load_kokoro(folder: Path, config: KokoroConfig, settings: Settings) -> Voice:
    try:
        from headrace.features.speech.kokoro_voice import load_kokoro  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise CannotLoadHere(f"{error.name} is missing: install Headrace with the extra `speech`") from error
    return load_kokoro(folder, config, settings.torch_threads)


PART = ModelPart(SPEECH, load_speech_model)
