"""The work of the task ``image_zero_shot``, for the models of embed: how well each label fits each image."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import exp, fsum
from operator import mul
from typing import Any

from headrace.features.encoders.classify.model import best_labels
from headrace.features.encoders.classify.task import LabelScore
from headrace.features.encoders.embed.inputs import Embedder
from headrace.features.encoders.embed.model import EmbedModel
from headrace.features.encoders.encode_jobs import numbers_of
from headrace.features.encoders.image_reader import ReadAll
from headrace.features.encoders.image_rows import ImageRows
from headrace.features.images.zero_shot.inputs import label_tokens
from headrace.features.images.zero_shot.task import IMAGE_ZERO_SHOT, ImageZeroShotOutput, ImageZeroShotPayload
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.jobs.claims import Claim
from headrace.store.payloads.job_payload import read_payload
from headrace.store.settings import Settings
from headrace.workers.tasks.encoding import EncodeJob, EncoderModel, ReadClaim, ServedPart
from headrace.workers.tasks.task_model import WorkContext


def read_candidates(
    tokenizer: Tokenizer, embedder: Embedder, scale: float, payload: Mapping[str, Any], read_all: ReadAll
) -> EncodeJob:
    """Return the job: the images, then the sentences of the labels. ``scale`` multiplies the cosine of two vectors."""
    asked = read_payload(ImageZeroShotPayload, payload)
    tokens = label_tokens(tokenizer, embedder, asked.input)
    images = read_all(asked.input.images)
    labels = asked.input.candidate_labels

    def output(vectors: Sequence[bytes]) -> dict[str, Any]:
        numbers = [numbers_of(vector) for vector in vectors]
        of_images, of_labels = numbers[: len(images.pixels)], numbers[len(images.pixels) :]
        found: list[tuple[LabelScore, ...]] = [()] * len(asked.input.images)
        for place, image in zip(images.places, of_images, strict=True):
            scores = _softmax([scale * fsum(map(mul, image, label)) for label in of_labels])
            found[place] = best_labels(labels, scores, asked.top_k)
        made = ImageZeroShotOutput(classifications=tuple(found), failed=images.failures)
        return made.model_dump(mode="json", exclude_none=True)

    inputs = ((0,) * (embedder.image_tokens or 0),) * len(images.pixels)
    return EncodeJob((*inputs, *tokens.inputs), ImageRows(images.pixels), output)


def _softmax(numbers: Sequence[float]) -> list[float]:
    most = max(numbers)
    powers = [exp(number - most) for number in numbers]
    total = fsum(powers)
    return [power / total for power in powers]


def _reader(model: EncoderModel, _settings: Settings) -> ReadClaim | None:
    if not isinstance(model, EmbedModel) or model.tokenizer is None or model.images is None:
        return None
    tokenizer, images = model.tokenizer, model.images

    def read(claim: Claim, context: WorkContext) -> EncodeJob:
        read_all = partial(images.of_job, context.db, claim.tenant_id)
        return read_candidates(tokenizer, model.embedder, model.scale, claim.payload, read_all)

    return read


PART = ServedPart(lambda claim: claim.task == IMAGE_ZERO_SHOT.name, _reader)
