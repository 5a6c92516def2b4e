"""The task ``score``: two texts in, one number out that says how well they fit together.

It has no models of its own: a reranker gives its relevance score, an encoder the cosine of the two vectors.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from headrace.features.encoders.encoder_fields import Cuts, Truncate
from headrace.store.payloads.job_payload import JobOrder
from headrace.store.payloads.strict_model import Strict, Text
from headrace.store.tasks.task_spec import TaskSpec

MAX_SCORE_PAIRS = 1000

ScoreTexts = Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_SCORE_PAIRS)]


class ScoreInput(Strict):
    """The texts to compare: each of ``text_1`` with the one of ``text_2`` at its place, or one with all."""

    text_1: ScoreTexts = Field(description="one text, or as many as in `text_2`")
    text_2: ScoreTexts = Field(description="the texts that are compared with those of `text_1`")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if len(self.text_1) not in (1, len(self.text_2)):
            raise ValueError(
                f"`text_1` has {len(self.text_1)} texts and `text_2` has {len(self.text_2)}: give one text in "
                "`text_1`, or as many as in `text_2`"
            )
        return self

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Each text of ``text_2`` with its text of ``text_1``."""
        first = self.text_1 * len(self.text_2) if len(self.text_1) == 1 else self.text_1
        return tuple(zip(first, self.text_2, strict=True))


class ScorePayload(Strict):
    """The part of a score request that the worker needs, as stored in the job row."""

    input: ScoreInput
    truncate: Truncate = False


class ScoreRequest(JobOrder):
    """The body of ``POST /v1/jobs`` for scores of pairs."""

    task: Literal["score"]
    input: ScoreInput
    truncate: Truncate = False


class ScoreOutput(Strict):
    """The output of a score job: a number for each pair, in order.

    ``truncated`` has the cut inputs by their place among the pairs. For vectors: by the place in ``text_1``, then
    ``text_2``.
    """

    scores: tuple[float, ...]
    truncated: Cuts = None


SCORE = TaskSpec(
    name="score",
    request=ScoreRequest,
    output=ScoreOutput,
    served_by=("rerank", "embed"),
    urls=("/v1/score",),
    has_many_texts=True,
    examples={
        "pairs": {
            "summary": "Scores for pairs of texts",
            "value": {
                "task": "score",
                "model": "reranker",
                "input": {"text_1": ["Where is the mill?"], "text_2": ["a mill on the river", "bread"]},
            },
        },
    },
)

PART = SCORE
