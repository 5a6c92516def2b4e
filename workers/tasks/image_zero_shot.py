"""The work of the task ``image_zero_shot``, for the models of embed: how well each label fits each image."""

from collections.abc import Mapping, Sequence
from math import exp, fsum
from operator import mul
from typing import Any

from headrace.models.runners.image_rows import ImageRows
from headrace.prompts.tasks.embed import Embedder
from headrace.prompts.tasks.image_zero_shot import label_tokens
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.payloads.job_payload import read_payload
from headrace.store.tasks.classify import LabelScore
from headrace.store.tasks.image_zero_shot import ImageZeroShotOutput, ImageZeroShotPayload
from headrace.workers.images.image_reader import ReadAll
from headrace.workers.tasks.classify import best_labels
from headrace.workers.tasks.encoding import EncodeJob, numbers_of


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
