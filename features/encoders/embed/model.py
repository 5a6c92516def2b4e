"""The work of the task ``embed``: a vector for each text or image."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from headrace.features.encoders.embed.inputs import Embedder, check_texts, embed_inputs, embedder_for
from headrace.features.encoders.embed.task import EMBED, EmbedOutput, EmbedPayload
from headrace.features.encoders.encode_jobs import FLOAT_BYTES
from headrace.features.encoders.fitted_inputs import cuts_of
from headrace.features.encoders.image_reader import ImageReader, ReadAll, ReadImages
from headrace.features.encoders.image_rows import ImageRows
from headrace.features.encoders.loading import load_encoder, load_image_encoder
from headrace.models.loading.load import with_encoder_faults
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.prompts.tokenizer import Tokenizer, tokenizer_for
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.claims import Claim
from headrace.store.payloads.conversation import EXAMPLE_IMAGE
from headrace.store.payloads.job_payload import read_payload
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.workers.tasks.encoding import EncodeJob, EncoderModel
from headrace.workers.tasks.task_model import ModelPart, WorkContext


@dataclass(frozen=True, slots=True)
class EmbedModel(EncoderModel):
    """An encoder with its embedder. ``tokenizer`` is None without texts, ``images`` without images.

    ``scale`` multiplies the cosine of an image and a text.
    """

    tokenizer: Tokenizer | None
    embedder: Embedder
    images: ImageReader | None = None
    scale: float = 1.0

    @property
    def example(self) -> Mapping[str, Any]:
        """Two short texts, or four pixels."""
        if self.tokenizer is None:
            return {"input": {"images": [EXAMPLE_IMAGE]}}
        return {"input": {"texts": ["water runs downhill", "a mill turns"]}}

    def read(self, payload: Mapping[str, Any]) -> EncodeJob:
        """Return the job of texts, or of images that the payload has."""
        return self._job(payload, self.images.of_payload if self.images else None)

    def read_claim(self, claim: Claim, context: WorkContext) -> EncodeJob:
        """Return the job of a claim, whose images may be files or come from servers."""
        return self._job(
            claim.payload, partial(self.images.of_job, context.db, claim.tenant_id) if self.images else None
        )

    def _job(self, payload: Mapping[str, Any], read_all: ReadAll | None) -> EncodeJob:
        asked = read_payload(EmbedPayload, payload)
        if asked.input.images is not None:
            if read_all is None:
                raise InvalidRequest("this model embeds no images", param="input")
            images = read_all(asked.input.images)
            tokens = (0,) * (self.embedder.image_tokens or 0)
            rows = ImageRows(images.pixels, asked.dimensions)
            return EncodeJob((tokens,) * len(images.pixels), rows, partial(_of_images, images))
        found = embed_inputs(
            self._texts(),
            self.embedder,
            asked.input,
            truncate=asked.truncate,
            prompt_name=asked.prompt_name,
        )
        return EncodeJob(found.inputs, asked.dimensions, partial(_output, found.nums_cut))

    def _texts(self) -> Tokenizer:
        """Return the tokenizer. Raises InvalidRequest if the model embeds images alone."""
        check_texts(self.embedder)
        if self.tokenizer is None:
            raise InvalidRequest("this model has no tokenizer", param="input")
        return self.tokenizer


def load_embed_model(version: ModelVersion, settings: Settings, read_file: ReadFile) -> EmbedModel:
    """Load an encoder of texts, of images, or of both."""
    embedder = embedder_for(version, read_file)
    tokenizer = tokenizer_for(version, read_file) if embedder.has_texts else None
    decode = (lambda _tokens: "") if tokenizer is None else tokenizer.decode
    if embedder.image_tokens is None:
        encoder = with_encoder_faults(load_encoder(version, settings), settings, decode)
        return EmbedModel(version, encoder, tokenizer, embedder)
    encoder, prepare, scale = load_image_encoder(version, settings)
    encoder = with_encoder_faults(encoder, settings, decode)
    return EmbedModel(version, encoder, tokenizer, embedder, ImageReader(prepare, settings), scale)


def _output(nums_cut: Sequence[int], vectors: Sequence[bytes]) -> dict[str, Any]:
    texts = tuple(b64encode(vector).decode() for vector in vectors)
    made = EmbedOutput(embeddings=texts, dimensions=len(vectors[0]) // FLOAT_BYTES, truncated=cuts_of(nums_cut))
    return made.model_dump(exclude_none=True)


def _of_images(images: ReadImages, vectors: Sequence[bytes]) -> dict[str, Any]:
    texts = [""] * (len(images.places) + len(images.failed))
    for place, vector in zip(images.places, vectors, strict=True):
        texts[place] = b64encode(vector).decode()
    made = EmbedOutput(embeddings=tuple(texts), dimensions=len(vectors[0]) // FLOAT_BYTES, failed=images.failures)
    return made.model_dump(exclude_none=True)


PART = ModelPart(EMBED, load_embed_model)
