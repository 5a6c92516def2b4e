"""The task ``classify``: texts or pairs of texts in, the scores of a classifier's labels out."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from headrace.features.encoders.encoder_fields import Cuts, Truncate
from headrace.store.payloads.job_payload import JobOrder
from headrace.store.payloads.strict_model import Strict, Text
from headrace.store.tasks.task_spec import TaskSpec

MAX_CLASSIFY_INPUTS = 8192

TextPair: TypeAlias = tuple[Text, Text]
ClassifyTexts = Annotated[
    tuple[Text | TextPair, ...],
    Field(min_length=1, max_length=MAX_CLASSIFY_INPUTS, description="texts, or pairs as lists of two texts"),
]
TopK = Annotated[int | None, Field(ge=1, description="so many of the best labels are returned; without it all")]


class ClassifyInput(Strict):
    """The texts to classify."""

    texts: ClassifyTexts


class ClassifyPayload(Strict):
    """The part of a classify request that the worker needs, as stored in the job row."""

    input: ClassifyInput
    top_k: TopK = None
    truncate: Truncate = False


class ClassifyRequest(JobOrder):
    """The body of ``POST /v1/jobs`` for labels of texts."""

    task: Literal["classify"]
    input: ClassifyInput
    top_k: TopK = None
    truncate: Truncate = False


class LabelScore(Strict):
    """A label, and how well it fits."""

    label: str = Field(description="one of the model's labels")
    score: float = Field(description="a probability, or the model's own number if it is a regression")


class ClassifyOutput(Strict):
    """The output of a classify job: for each input its labels by falling score, at most ``top_k``.

    ``labels`` are all labels of the model, in its order.
    """

    labels: tuple[str, ...]
    classifications: tuple[tuple[LabelScore, ...], ...]
    truncated: Cuts = None


CLASSIFY = TaskSpec(
    name="classify",
    request=ClassifyRequest,
    output=ClassifyOutput,
    runner="classifier",
    fake_runner="fake-classifier",
    urls=("/v1/classify",),
    purpose="classifies texts and makes no text: use /v1/classify, or the task classify",
    bulky_outputs=("classifications",),
    has_many_texts=True,
    url_example={"input": ["a mill on the river", "bread"]},
    examples={
        "labels": {
            "summary": "Labels for texts",
            "value": {
                "task": "classify",
                "model": "sentiment",
                "input": {"texts": ["what a lovely mill", "the bread was stale"]},
                "top_k": 1,
            },
        },
    },
)

PART = CLASSIFY
