"""The work of the task ``embed``: a vector for each input."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.loading.load import load_encoder, with_encoder_faults
from prompts.tasks.embed import Embedder, embed_inputs, embedder_for
from prompts.tasks.task_inputs import ReadFile
from prompts.tokenizer import Tokenizer, tokenizer_for
from store.payloads.job_payload import read_payload
from store.registry.models import ModelVersion
from store.settings import Settings
from store.tasks.embed import EmbedOutput, EmbedPayload
from workers.tasks.encoding import EncodeJob, EncoderModel

FLOAT_BYTES = 4


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
        inputs = embed_inputs(self.tokenizer, self.embedder, asked.input, truncate=asked.truncate)
        return EncodeJob(inputs, asked.dimensions, _output)


def load_embed_model(version: ModelVersion, settings: Settings, read_file: ReadFile) -> EmbedModel:
    """Load an encoder."""
    tokenizer = tokenizer_for(version, read_file)
    encoder = with_encoder_faults(load_encoder(version, settings), settings, tokenizer.decode)
    return EmbedModel(version, encoder, tokenizer, embedder_for(version, read_file))


def _output(vectors: Sequence[bytes]) -> dict[str, Any]:
    texts = tuple(b64encode(vector).decode() for vector in vectors)
    return EmbedOutput(embeddings=texts, dimensions=len(vectors[0]) // FLOAT_BYTES).model_dump()
