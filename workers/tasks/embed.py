"""The work of the task ``embed``: a vector for each input."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from models.loading.load import load_encoder, with_encoder_faults
from prompts.encoders.encoder_inputs import cuts_of
from prompts.tasks.embed import Embedder, embed_inputs, embedder_for
from prompts.tasks.task_inputs import ReadFile
from prompts.tokenizer import Tokenizer, tokenizer_for
from store.payloads.job_payload import read_payload
from store.registry.models import ModelVersion
from store.settings import Settings
from store.tasks.embed import EmbedOutput, EmbedPayload
from store.tasks.score import SCORE
from workers.tasks.encoding import FLOAT_BYTES, EncodeJob, EncoderModel, ReadJob
from workers.tasks.score import read_texts


@dataclass(frozen=True, slots=True)
class EmbedModel(EncoderModel):
    """An encoder with its tokenizer and embedder."""

    tokenizer: Tokenizer
    embedder: Embedder

    @property
    def example(self) -> Mapping[str, Any]:
        """Two short texts."""
        return {"input": {"texts": ["water runs downhill", "a mill turns"]}}

    def read(self, payload: Mapping[str, Any]) -> EncodeJob:
        """Return the job's inputs as tokens."""
        asked = read_payload(EmbedPayload, payload)
        tokens = embed_inputs(
            self.tokenizer, self.embedder, asked.input, truncate=asked.truncate, prompt_name=asked.prompt_name
        )
        return EncodeJob(tokens.inputs, asked.dimensions, partial(_output, tokens.nums_cut))

    @property
    def other_readers(self) -> Mapping[str, ReadJob]:
        """The task ``score``."""
        return {SCORE.name: partial(read_texts, self.tokenizer, self.embedder)}


def load_embed_model(version: ModelVersion, settings: Settings, read_file: ReadFile) -> EmbedModel:
    """Load an encoder."""
    tokenizer = tokenizer_for(version, read_file)
    encoder = with_encoder_faults(load_encoder(version, settings), settings, tokenizer.decode)
    return EmbedModel(version, encoder, tokenizer, embedder_for(version, read_file))


def _output(nums_cut: Sequence[int], vectors: Sequence[bytes]) -> dict[str, Any]:
    texts = tuple(b64encode(vector).decode() for vector in vectors)
    made = EmbedOutput(embeddings=texts, dimensions=len(vectors[0]) // FLOAT_BYTES, truncated=cuts_of(nums_cut))
    return made.model_dump(exclude_none=True)
