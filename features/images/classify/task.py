"""The task ``image_classify``: images in, the scores of a classifier's labels out."""

from typing import Literal

from headrace.features.encoders.classify.task import LabelScore, TopK
from headrace.store.payloads.conversation import EXAMPLE_IMAGE, Failures, Images, urls_of
from headrace.store.payloads.job_payload import JobOrder
from headrace.store.payloads.strict_model import Strict
from headrace.store.tasks.task_spec import TaskSpec


class ImageClassifyInput(Strict):
    """The images to classify."""

    images: Images


class ImageClassifyPayload(Strict):
    """The part of an image_classify request that the worker needs, as stored in the job row."""

    input: ImageClassifyInput
    top_k: TopK = None


class ImageClassifyRequest(JobOrder):
    """The body of ``POST /v1/jobs`` for labels of images."""

    task: Literal["image_classify"]
    input: ImageClassifyInput
    top_k: TopK = None

    def called_urls(self) -> tuple[tuple[str, str], ...]:
        """Return the URLs of images, by their fields."""
        return urls_of(self.input.images)


class ImageClassifyOutput(Strict):
    """The output of an image_classify job: for each image its labels by falling score, at most ``top_k``.

    ``labels`` are all labels of the model, in its order. An image that could not be read has no scores, and is in
    ``failed``.
    """

    labels: tuple[str, ...]
    classifications: tuple[tuple[LabelScore, ...], ...]
    failed: Failures = None


IMAGE_CLASSIFY = TaskSpec(
    name="image_classify",
    request=ImageClassifyRequest,
    output=ImageClassifyOutput,
    runner="image-classifier",
    fake_runner="fake-image-classifier",
    urls=("/v1/images/classify",),
    purpose="classifies images and makes no text: use /v1/images/classify, or the task image_classify",
    bulky_outputs=("classifications",),
    has_many_texts=True,
    url_example={"images": [EXAMPLE_IMAGE]},
    examples={
        "image labels": {
            "summary": "Labels for images",
            "value": {
                "task": "image_classify",
                "model": "vit",
                "input": {"images": [EXAMPLE_IMAGE, "https://example.com/mill.jpg"]},
                "top_k": 5,
            },
        },
    },
)

PART = IMAGE_CLASSIFY
