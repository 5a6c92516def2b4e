"""Requests for labels of images. Each image counts as many tokens as the model computes for it."""

from typing import TYPE_CHECKING, Final

from headrace.features.encoders.classifier_folder import Activation
from headrace.features.encoders.image_folder import (
    PROCESSOR_FILE,
    ImageClassifierSettings,
    is_image_classifier,
    num_tokens_of,
    read_image_classifier,
)
from headrace.features.images.classify.task import IMAGE_CLASSIFY, ImageClassifyPayload, ImageClassifyRequest
from headrace.prompts.tasks.task_inputs import InputModel, Prepared, ReadFile, TaskInputs
from headrace.prompts.vision.image_sources import check_images
from headrace.store.payloads.job_payload import PinnedPolicy

if TYPE_CHECKING:
    from headrace.store.registry.models import ModelVersion

FAKE: Final = ImageClassifierSettings(50, ("bread", "mill", "river"), Activation.SOFTMAX)
"""Of the image classifier without weights."""


def settings_for(version: "ModelVersion", read_file: ReadFile) -> ImageClassifierSettings:
    """Return the settings of a registered image classifier."""
    if version.is_fake:
        return FAKE
    names = ("config.json", PROCESSOR_FILE)
    return read_image_classifier({name: read_file(version.files[name]) for name in names})


def prepare(request: ImageClassifyRequest, model: InputModel, _policy: PinnedPolicy | None) -> Prepared:
    """Return the payload and the cost. Raises InvalidRequest for an image that the request brings and is none."""
    check_images(request.input.images)
    settings: ImageClassifierSettings = model.settings
    payload = ImageClassifyPayload(input=request.input, top_k=request.top_k)
    return Prepared(payload, settings.num_tokens * len(request.input.images))


PART = TaskInputs(
    spec=IMAGE_CLASSIFY,
    prepare=prepare,
    cut_to_length=lambda request, _model: request,
    is_quick=lambda _request, _model: False,
    read_settings=settings_for,
    is_folder=is_image_classifier,
    folder_files=(PROCESSOR_FILE,),
    folder_window=num_tokens_of,
    has_tokenizer=lambda _config: False,
)
