"""Encoding: a job's inputs in, one vector each out, as the outcome to write.

Nothing is streamed and nothing is kept of an attempt that ends early: another begins anew.
"""

from base64 import b64encode

from models.engine.protocol import Engine
from models.engine.requests import Encoded, EncodeRequest, FinishReason
from prompts.tasks.embed import Embedder, embed_inputs
from prompts.tokenizer import Tokenizer
from store.jobs.claims import Claim, Finish
from store.payloads.job_payload import JobErrorBody, Usage, read_payload
from store.schema.job_states import JobState
from store.streams.checkpoints import Checkpoint
from store.tasks.embed import EmbedOutput, EmbedPayload
from workers.runs.engine_admission import EngineAdmission
from workers.runs.engine_client import EngineClient
from workers.runs.in_flight import Attempt, InFlightAttempts
from workers.runs.outcome import STATES, Retry
from workers.runs.stream_publisher import FrameQueue

FLOAT_BYTES = 4


class Encoding:
    """Makes vectors for jobs of one model version. ``compute`` is called from many threads at once."""

    def __init__(
        self,
        *,
        in_flight: InFlightAttempts,
        engine: Engine[EncodeRequest, Encoded],
        admission: EngineAdmission,
        frames: FrameQueue,
        tokenizer: Tokenizer,
        embedder: Embedder,
    ) -> None:
        self._engine = EngineClient(engine, admission, in_flight)
        self._frames = frames
        self._tokenizer = tokenizer
        self._embedder = embedder

    def compute(self, attempt: Attempt) -> Finish | Retry:
        """Make the job's vectors. Raises InvalidRequest for a payload that cannot be read or does not fit."""
        request = self._request(attempt)
        start = Checkpoint().continued_by(attempt.epoch)
        if attempt.epoch > 1:
            self._frames.put_start(attempt.id, start)
        encoded = self._engine.run(attempt, request, num_prompt=request.num_tokens, max_tokens=0)
        return completed(attempt.claim, encoded)

    def _request(self, attempt: Attempt) -> EncodeRequest:
        payload = read_payload(EmbedPayload, attempt.claim.payload)
        inputs = embed_inputs(self._tokenizer, self._embedder, payload.input)
        return EncodeRequest(
            attempt.id, inputs, payload.dimensions, attempt.deadline, class_rank=attempt.claim.class_rank
        )


def completed(claim: Claim, encoded: Encoded) -> Finish | Retry:
    """Return the outcome of a request that the engine ended. One that was handed back is not charged."""
    if encoded.finish_reason is FinishReason.HANDED_BACK:
        return Retry("handed_back", "the attempt was handed back for another to begin anew", charge=False)
    state = STATES[encoded.finish_reason]
    late = JobErrorBody(
        code="deadline_exceeded", message="the deadline passed while the job ran", attempt=claim.attempt
    )
    spent = Usage(
        input_tokens=encoded.num_tokens,
        output_tokens=0,
        queue_ms=claim.queued_s * 1000,
        compute_ms=encoded.total_s * 1000,
    )
    return Finish(
        job_id=claim.job_id,
        epoch=claim.epoch,
        state=state,
        output=_output(encoded.vectors) if state is JobState.SUCCEEDED else None,
        error=late.model_dump() if state is JobState.EXPIRED else None,
        usage=spent.model_dump(),
        tenant_id=claim.tenant_id,
    )


def _output(vectors: tuple[bytes, ...]) -> dict[str, object]:
    texts = tuple(b64encode(vector).decode() for vector in vectors)
    return EmbedOutput(embeddings=texts, dimensions=len(vectors[0]) // FLOAT_BYTES).model_dump()
