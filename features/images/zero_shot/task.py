"""The task ``image_zero_shot``: images and labels in words in, how well each label fits each image out.

It has no models of its own: a model that embeds images and texts, as CLIP, serves it.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from headrace.features.encoders.classify.task import LabelScore, TopK
from headrace.store.payloads.conversation import EXAMPLE_IMAGE, Failures, Images, urls_of
from headrace.store.payloads.job_payload import JobOrder
from headrace.store.payloads.strict_model import Strict
from headrace.store.tasks.task_spec import TaskSpec

MAX_CANDIDATES = 256

DEFAULT_TEMPLATE = "This is a photo of {}."

Candidate = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


def _each_once(labels: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(labels)) < len(labels):
        raise ValueError("a label is listed twice")
    return labels


def _with_place(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError("it has `{}` once, where the label stands")
    return template


Candidates = Annotated[
    tuple[Candidate, ...],
    Field(min_length=1, max_length=MAX_CANDIDATES, description="labels in words, each once"),
    AfterValidator(_each_once),
]
HypothesisTemplate = Annotated[
    str,
    StringConstraints(min_length=2, max_length=1000),
    Field(description="the sentence in which a label stands for `{}` before it is embedded"),
    AfterValidator(_with_place),
]


class ImageZeroShotInput(Strict):
    """The images, and the labels to choose from."""

    images: Images
    candidate_labels: Candidates
    hypothesis_template: HypothesisTemplate = DEFAULT_TEMPLATE

    @property
    def sentences(self) -> tuple[str, ...]:
        """The sentence of each label."""
        return tuple(self.hypothesis_template.replace("{}", label) for label in self.candidate_labels)


class ImageZeroShotPayload(Strict):
    """The part of an image_zero_shot request that the worker needs, as stored in the job row."""

    input: ImageZeroShotInput
    top_k: TopK = None


class ImageZeroShotRequest(JobOrder):
    """The body of ``POST /v1/jobs`` for labels in words."""

    task: Literal["image_zero_shot"]
    input: ImageZeroShotInput
    top_k: TopK = None

    def called_urls(self) -> tuple[tuple[str, str], ...]:
        """Return the URLs of images, by their fields."""
        return urls_of(self.input.images)


class ImageZeroShotOutput(Strict):
    """The output of an image_zero_shot job: for each image the labels by falling score, at most ``top_k``.

    The scores of an image have the sum 1. An image that could not be read has none, and is in ``failed``.
    """

    classifications: tuple[tuple[LabelScore, ...], ...]
    failed: Failures = None


IMAGE_ZERO_SHOT = TaskSpec(
    name="image_zero_shot",
    request=ImageZeroShotRequest,
    output=ImageZeroShotOutput,
    served_by=("embed",),
    urls=("/v1/images/zero_shot",),
    bulky_outputs=("classifications",),
    has_many_texts=True,
    examples={
        "labels in words": {
            "summary": "Labels in words for images",
            "value": {
                "task": "image_zero_shot",
                "model": "clip",
                "input": {"images": [EXAMPLE_IMAGE], "candidate_labels": ["a mill", "a loaf of bread"]},
            },
        },
    },
)

PART = IMAGE_ZERO_SHOT
