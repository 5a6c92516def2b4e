"""The work of the task ``image_classify``: the scores of the labels for each image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from headrace.features.encoders.classify.model import best_labels
from headrace.features.encoders.classify.task import LabelScore
from headrace.features.encoders.encode_jobs import numbers_of
from headrace.features.encoders.image_folder import ImageClassifierSettings
from headrace.features.encoders.image_reader import ImageReader, ReadAll
from headrace.features.encoders.image_rows import ImageRows
from headrace.features.encoders.loading import load_image_classifier
from headrace.features.images.classify.inputs import settings_for
from headrace.features.images.classify.task import IMAGE_CLASSIFY, ImageClassifyOutput, ImageClassifyPayload
from headrace.models.loading.load import with_encoder_faults
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.store.jobs.claims import Claim
from headrace.store.payloads.conversation import EXAMPLE_IMAGE
from headrace.store.payloads.job_payload import read_payload
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.workers.tasks.encoding import EncodeJob, EncoderModel
from headrace.workers.tasks.task_model import ModelPart, WorkContext


@dataclass(frozen=True, slots=True)
class ImageClassifyModel(EncoderModel):
    """An image classifier."""

    settings: ImageClassifierSettings
    images: ImageReader

    @property
    def example(self) -> Mapping[str, Any]:
        """Four pixels."""
        return {"input": {"images": [EXAMPLE_IMAGE]}}

    def read(self, payload: Mapping[str, Any]) -> EncodeJob:
        """Return the job of images that the payload has."""
        return self._job(payload, self.images.of_payload)

    def read_claim(self, claim: Claim, context: WorkContext) -> EncodeJob:
        """Return the job of a claim, whose images may be files or come from servers."""
        return self._job(claim.payload, partial(self.images.of_job, context.db, claim.tenant_id))

    def _job(self, payload: Mapping[str, Any], read_all: ReadAll) -> EncodeJob:
        asked = read_payload(ImageClassifyPayload, payload)
        images = read_all(asked.input.images)
        labels = self.settings.labels

        def output(vectors: Sequence[bytes]) -> dict[str, Any]:
            found: list[tuple[LabelScore, ...]] = [()] * len(asked.input.images)
            for place, vector in zip(images.places, vectors, strict=True):
                found[place] = best_labels(labels, numbers_of(vector), asked.top_k)
            made = ImageClassifyOutput(labels=labels, classifications=tuple(found), failed=images.failures)
            return made.model_dump(mode="json", exclude_none=True)

        tokens = (0,) * self.settings.num_tokens
        return EncodeJob((tokens,) * len(images.pixels), ImageRows(images.pixels), output)


def load_image_classify_model(version: ModelVersion, settings: Settings, read_file: ReadFile) -> ImageClassifyModel:
    """Load an image classifier."""
    found = settings_for(version, read_file)
    encoder, prepare = load_image_classifier(version, settings, found)
    encoder = with_encoder_faults(encoder, settings, lambda _tokens: "")
    return ImageClassifyModel(version, encoder, found, ImageReader(prepare, settings))


PART = ModelPart(IMAGE_CLASSIFY, load_image_classify_model)
