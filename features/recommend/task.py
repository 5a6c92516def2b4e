"""The task ``recommend``: a user in, the best items out."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    FiniteFloat,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    StringConstraints,
    model_validator,
)

from headrace.features.predict.task import Row
from headrace.store.payloads.job_payload import JobOrder
from headrace.store.payloads.strict_model import Strict
from headrace.store.tasks.task_spec import TaskSpec

MAX_TOP_K = 1000
MAX_IDS = 10_000
MAX_DIMENSIONS = 4096

ItemId = Annotated[str, StringConstraints(min_length=1, max_length=200)]
AttributeValue = StrictBool | StrictInt | Annotated[StrictFloat, Field(allow_inf_nan=False)] | StrictStr
Ids = Annotated[tuple[ItemId, ...], Field(max_length=MAX_IDS)]


class HistoryItem(Strict):
    """An item that the user has used, and how much it counts."""

    id: ItemId = Field(description="the item")
    weight: Annotated[FiniteFloat, Field(gt=0, le=1e6)] = Field(1.0, description="how much it counts")


ONE_USER = "give exactly one of `vector`, `history` and `features`"


VectorNumber = Annotated[FiniteFloat, Field(ge=-1e15, le=1e15)]
"""Larger ones would be lost in float32, where the squares of 4,096 numbers must have a sum."""

UserVector = Annotated[
    Annotated[tuple[VectorNumber, ...], Field(min_length=1, max_length=MAX_DIMENSIONS)] | None,
    Field(description="the user's own vector"),
]
History = Annotated[
    Annotated[tuple[HistoryItem, ...], Field(min_length=1, max_length=MAX_IDS)] | None,
    Field(description="items of the user; the user's vector is their weighted mean"),
]
UserFeatures = Annotated[Row | None, Field(description="a row of features for the model's user tower")]


class RecommendInput(Strict):
    """The user: exactly one of the three."""

    vector: UserVector = None
    history: History = None
    features: UserFeatures = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if [self.vector, self.history, self.features].count(None) != 2:
            raise ValueError(ONE_USER)
        return self


class AttributeCondition(Strict):
    """What an attribute of an item must be. An item without the attribute does not match."""

    attribute: Annotated[str, StringConstraints(min_length=1, max_length=100)] = Field(description="its name")
    one_of: Annotated[tuple[AttributeValue, ...], Field(min_length=1, max_length=1000)] | None = Field(
        None, description="it equals one of these"
    )
    minimum: FiniteFloat | None = Field(None, description="it is at least this number")
    maximum: FiniteFloat | None = Field(None, description="it is at most this number")

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if (self.one_of is None) == (self.minimum is None and self.maximum is None):
            raise ValueError("give `one_of`, or a range by `minimum` and `maximum`")
        return self


class ItemFilter(Strict):
    """Which items may be recommended. All parts must hold."""

    include_ids: Ids | None = Field(None, description="only these items")
    exclude_ids: Ids = Field((), description="none of these items")
    where: Annotated[tuple[AttributeCondition, ...], Field(max_length=16)] = Field(
        (), description="conditions on attributes; all must hold"
    )


Filter = Annotated[ItemFilter, Field(description="which items may be recommended")]
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K, strict=True, description="the number of items")]
ExcludeHistory = Annotated[bool, Field(description="false: items of the history may be recommended again")]


class RecommendPayload(Strict):
    """The part of a recommend request that the worker needs, as stored in the job row."""

    input: RecommendInput
    filter: Filter = ItemFilter()
    top_k: TopK = 10
    exclude_history: ExcludeHistory = True


class RecommendRequest(JobOrder):
    """The body of ``POST /v1/jobs`` for recommendations."""

    task: Literal["recommend"]
    input: RecommendInput
    filter: Filter = ItemFilter()
    top_k: TopK = 10
    exclude_history: ExcludeHistory = True

    def fixed_texts(self) -> tuple[str, ...]:
        """Return the ids and texts of the filter, which cannot have a placeholder."""
        values = [value for one in self.filter.where for value in one.one_of or () if isinstance(value, str)]
        return *(self.filter.include_ids or ()), *self.filter.exclude_ids, *values


class RecommendedItem(Strict):
    """An item with its score: the similarity of its vector and the user's."""

    id: str = Field(description="the item")
    score: float = Field(description="dot product or cosine with the user's vector")
    attributes: dict[str, AttributeValue] = Field(default_factory=dict, description="of the item")


class RecommendOutput(Strict):
    """The output of a recommend job: the items by falling score, at most ``top_k``."""

    items: tuple[RecommendedItem, ...]
    unknown_ids: tuple[str, ...] = Field((), description="ids of the history that the version does not have")


_HISTORY = [{"id": "item-1"}, {"id": "item-2", "weight": 0.5}]

PART = RECOMMEND = TaskSpec(
    name="recommend",
    request=RecommendRequest,
    output=RecommendOutput,
    runner="recommender",
    fake_runner="fake-recommender",
    urls=("/v1/recommendations",),
    purpose="recommends items: use /v1/recommendations, or the task recommend",
    bulky_outputs=("items",),
    url_example={"history": _HISTORY, "top_k": 3},
    examples={
        "recommendations": {
            "summary": "Items for a user",
            "value": {"task": "recommend", "model": "shop", "input": {"history": _HISTORY}, "top_k": 3},
        },
    },
)
