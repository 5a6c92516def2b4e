"""The task ``predict``: rows of a table in, a prediction for each row out."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, StrictBool, StrictInt, StrictStr

from headrace.store.payloads.job_payload import JobOrder
from headrace.store.payloads.strict_model import Strict
from headrace.store.tasks.task_spec import TaskSpec

MAX_ROWS = 1000
MAX_FEATURES = 1000
EXPLAINED_COST = 16
"""A row with an explanation takes the place of so many rows, in a step of the engine and in the usage."""

FeatureValue = StrictBool | StrictInt | FiniteFloat | StrictStr | None
Row = Annotated[dict[str, FeatureValue], Field(max_length=MAX_FEATURES)]
Rows = Annotated[
    tuple[Row, ...],
    Field(min_length=1, max_length=MAX_ROWS, description="objects with a value for each feature of the model"),
]
Explain = Annotated[bool, Field(description="add the contribution of each feature to each prediction")]


class PredictInput(Strict):
    """The rows. The feature schema of the model says which fields they have (docs/tabular.md)."""

    rows: Rows


class PredictRequest(JobOrder):
    """The body of ``POST /v1/jobs`` for predictions."""

    task: Literal["predict"]
    input: PredictInput
    explain: Explain = False


class PredictPayload(Strict):
    """The part of a predict request that the worker needs, as stored in the job row."""

    input: PredictInput
    explain: Explain = False


class Explanation(Strict):
    """The contribution of each feature to a score, by integrated gradients (Sundararajan et al. 2017).

    The contributions and the baseline sum to the score but for ``convergence_delta``, the error of the integration.
    """

    baseline: float = Field(description="the score of the model's baseline row")
    contributions: dict[str, float] = Field(description="by feature; with the baseline they sum to the score")
    convergence_delta: float = Field(description="what is missing in that sum, the error of the integration")


class Prediction(Strict):
    """The prediction for a row. ``label`` and ``probabilities`` are of classifiers only."""

    score: float = Field(description="probability of the second of two classes, or of the label; the predicted number")
    label: str | None = Field(None, description="the predicted class")
    probabilities: dict[str, float] | None = Field(None, description="by class")
    explanation: Explanation | None = Field(None, description="with `explain`")


class PredictOutput(Strict):
    """The output of a predict job: the predictions in the order of the rows."""

    predictions: tuple[Prediction, ...]


_ROWS = [{"amount": 12.5, "country": "ch"}, {"amount": 9800, "country": "xx"}]

PART = PREDICT = TaskSpec(
    name="predict",
    request=PredictRequest,
    output=PredictOutput,
    runner="tabular",
    fake_runner="fake-tabular",
    urls=("/v1/tabular/predictions",),
    purpose="predicts from rows of a table: use /v1/tabular/predictions, or the task predict",
    bulky_outputs=("predictions",),
    url_example={"rows": _ROWS},
    examples={
        "predictions": {
            "summary": "Predictions for rows of a table",
            "value": {"task": "predict", "model": "fraud", "input": {"rows": _ROWS}, "explain": True},
        },
    },
)
