"""The work of the task ``image_classify``: the scores of the labels for each image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from headrace.models.loading.load import load_image_classifier, with_encoder_faults
from headrace.models.runners.image_rows import ImageRows
from headrace.prompts.tasks.image_classify import settings_for
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.prompts.vision.image_folder import ImageClassifierSettings
from headrace.store.jobs.claims import Claim
from headrace.store.payloads.job_payload import read_payload
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.store.tasks.classify import LabelScore
from headrace.store.tasks.image_classify import EXAMPLE_IMAGE, ImageClassifyOutput, ImageClassifyPayload
from headrace.workers.images.image_reader import ImageReader, ReadAll
from headrace.workers.tasks.classify import best_labels
from headrace.workers.tasks.encoding import EncodeJob, EncoderModel, numbers_of
from headrace.workers.tasks.task_model import WorkContext


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
