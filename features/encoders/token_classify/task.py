"""The task ``token_classify``: texts in, the entities that a token classifier finds in them out."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from headrace.features.encoders.encoder_fields import Cuts, Truncate
from headrace.store.payloads.job_payload import JobOrder
from headrace.store.payloads.strict_model import Strict, Text
from headrace.store.tasks.task_spec import TaskSpec

MAX_TOKEN_CLASSIFY_INPUTS = 8192
MAX_IGNORED_LABELS = 1000


class Aggregation(StrEnum):
    """How tokens become entities, by the names of transformers' pipeline.

    ``none``: each token is one. ``simple``: adjacent tokens of one label are. The others let all tokens of a word have
    one label before: that of its ``first`` token, of the ``average`` of its tokens' scores, or of the token with the
    ``max`` score.
    """

    NONE = "none"
    SIMPLE = "simple"
    FIRST = "first"
    AVERAGE = "average"
    MAX = "max"


AggregationField = Annotated[Aggregation, Field(description="how tokens become entities, as in transformers' pipeline")]
IgnoredLabels = Annotated[
    tuple[str, ...], Field(max_length=MAX_IGNORED_LABELS, description="labels that are left out of the answer")
]


class TokenClassifyInput(Strict):
    """The texts to find entities in."""

    texts: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_TOKEN_CLASSIFY_INPUTS)]


class TokenClassifyPayload(Strict):
    """The part of a token_classify request that the worker needs, as stored in the job row."""

    input: TokenClassifyInput
    aggregation_strategy: AggregationField = Aggregation.SIMPLE
    ignore_labels: IgnoredLabels = ("O",)
    truncate: Truncate = False


class TokenClassifyRequest(JobOrder):
    """The body of ``POST /v1/jobs`` for entities."""

    task: Literal["token_classify"]
    input: TokenClassifyInput
    aggregation_strategy: AggregationField = Aggregation.SIMPLE
    ignore_labels: IgnoredLabels = ("O",)
    truncate: Truncate = False


class Entity(Strict):
    """A part of a text with one label. ``start`` and ``end`` are characters of the text (Unicode code points)."""

    label: str = Field(description="the model's label; without its `B-` or `I-` if tokens were put together")
    score: float = Field(description="the probability of the label")
    start: int = Field(description="the first character, from 0")
    end: int = Field(description="the character after the last one")
    word: str = Field(description="the tokens as text; `text[start:end]` has the characters as they were sent")
    index: int | None = Field(None, description="the token's place; only if each token is an entity")


class TokenClassifyOutput(Strict):
    """The output of a token_classify job: for each input its entities, in the order of the text."""

    entities: tuple[tuple[Entity, ...], ...]
    truncated: Cuts = None


TOKEN_CLASSIFY = TaskSpec(
    name="token_classify",
    request=TokenClassifyRequest,
    output=TokenClassifyOutput,
    runner="token-classifier",
    fake_runner="fake-token-classifier",
    urls=("/v1/token_classify",),
    purpose="finds entities and makes no text: use /v1/token_classify, or the task token_classify",
    bulky_outputs=("entities",),
    has_many_texts=True,
    url_example={"input": ["Ann lives by the mill"]},
    examples={
        "entities": {
            "summary": "Entities in texts",
            "value": {"task": "token_classify", "model": "ner", "input": {"texts": ["Ann lives by the mill"]}},
        },
    },
)

PART = TOKEN_CLASSIFY
