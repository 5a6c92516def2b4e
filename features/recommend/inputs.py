"""Requests for recommendations, checked by the configuration of the recommender: a request counts as one token.

The API does not read the items. So it checks lengths, features and attributes; ids are looked up by the worker.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints

from headrace.features.predict.feature_schema import EncodedRow, read_config
from headrace.features.predict.inputs import DenseConfig
from headrace.features.recommend.items import AttributeType, Item, Items, check_filter, read_items
from headrace.features.recommend.task import (
    MAX_DIMENSIONS,
    MAX_TOP_K,
    RECOMMEND,
    AttributeCondition,
    RecommendPayload,
    RecommendRequest,
)
from headrace.prompts.tasks.task_inputs import InputModel, Prepared, ReadFile, TaskInputs
from headrace.store.errors import InvalidRequest, ModelLoadError
from headrace.store.payloads.job_payload import PinnedPolicy
from headrace.store.payloads.strict_model import Strict

if TYPE_CHECKING:
    from headrace.store.registry.models import ModelVersion

MODEL_TYPE: Final = "headrace-recommender"
"""The ``model_type`` in the ``config.json`` of such a folder."""

ITEMS_FILE: Final = "items.jsonl"
MOST_ITEM_BYTES: Final = 64 * 2**20
"""The registry stores the file, so its size has a limit."""


class Similarity(StrEnum):
    """The score of an item: the dot product of its vector and the user's, or their cosine."""

    DOT = "dot"
    COSINE = "cosine"


class UserTower(DenseConfig):
    """The network that makes the user's vector of a row of features."""


class RecommenderConfig(Strict):
    """The ``config.json`` of a recommender. ``attributes``: the type of each attribute of the items."""

    model_type: Literal["headrace-recommender"]
    dimensions: int = Field(ge=1, le=MAX_DIMENSIONS)
    similarity: Similarity = Similarity.DOT
    attributes: Annotated[
        dict[Annotated[str, StringConstraints(min_length=1, max_length=100)], AttributeType], Field(max_length=100)
    ] = Field(default_factory=dict)
    user_tower: UserTower | None = None


FAKE: Final = RecommenderConfig.model_validate(
    {"model_type": MODEL_TYPE, "dimensions": 8, "attributes": {"price": "number", "category": "text"}}
)
"""Of the recommender without weights."""

FAKE_ITEMS: Final = Items(
    [
        Item(id=f"item-{number}", attributes={"price": float(number), "category": "ab"[number % 2]})
        for number in range(100)
    ]
)


@dataclass(frozen=True, slots=True)
class RecommendQuery:
    """A user and what may be recommended: the options of a request. Items are places.

    Exactly one of ``vector``, ``history`` (with ``weights``) and ``row`` is the user. ``only``: None is every item.
    """

    top_k: int
    vector: Sequence[float] | None = None
    history: Sequence[int] = ()
    weights: Sequence[float] = ()
    row: EncodedRow | None = None
    only: Sequence[int] | None = None
    without: Sequence[int] = ()
    where: Sequence[AttributeCondition] = ()


def query_of(payload: RecommendPayload, config: RecommenderConfig, items: Items) -> RecommendQuery:
    """Return the request with the places of its items. Raises InvalidRequest if no item of the history is known."""
    source, wanted = payload.input, payload.filter
    known = [one for one in source.history or () if one.id in items.places]
    if source.history is not None and not known:
        raise InvalidRequest(
            "this version of the model has no item of the history: give other items, or the user's vector",
            param="input.history",
        )
    history = [items.places[one.id] for one in known]
    row = None
    if source.features is not None and config.user_tower is not None:
        row = config.user_tower.encode(source.features, "input.features")
    return RecommendQuery(
        top_k=payload.top_k,
        vector=source.vector,
        history=history,
        weights=[one.weight for one in known],
        row=row,
        only=None if wanted.include_ids is None else items.known(wanted.include_ids),
        without=[*items.known(wanted.exclude_ids), *(history if payload.exclude_history else ())],
        where=wanted.where,
    )


def config_for(version: "ModelVersion", read_file: ReadFile) -> RecommenderConfig:
    """Return the configuration of a registered recommender."""
    return FAKE if version.is_fake else read_config(RecommenderConfig, read_file(version.files["config.json"]))


def items_for(version: "ModelVersion", config: RecommenderConfig, read_file: ReadFile) -> Items:
    """Return the items of a registered recommender."""
    return FAKE_ITEMS if version.is_fake else read_items(read_file(version.files[ITEMS_FILE]), config.attributes)


def check_request(request: RecommendRequest, model: InputModel) -> RecommendRequest:
    """Return the request; raise InvalidRequest if it does not fit the recommender."""
    config: RecommenderConfig = model.settings
    vector, features = request.input.vector, request.input.features
    if vector is not None and len(vector) != config.dimensions:
        raise InvalidRequest(
            f"`input.vector` has {len(vector)} numbers, and the model's vectors have {config.dimensions}",
            param="input.vector",
        )
    if features is not None:
        if config.user_tower is None:
            raise InvalidRequest(
                "`input.features`: this model has no user tower: give `vector` or `history`", param="input.features"
            )
        config.user_tower.encode(features, "input.features")
    check_filter(request.filter, config.attributes)
    return request


def prepare(request: RecommendRequest, model: InputModel, _policy: PinnedPolicy | None) -> Prepared:
    """Return the payload and the cost. A policy changes nothing in the items."""
    check_request(request, model)
    fields = RecommendPayload.model_fields
    return Prepared(RecommendPayload.model_construct(**{name: getattr(request, name) for name in fields}), 1)


def is_recommender(config: Mapping[str, Any]) -> bool:
    """Return True if this ``config.json`` is of a recommender."""
    return config.get("model_type") == MODEL_TYPE


def _checked(files: Mapping[str, bytes]) -> int:
    config = read_config(RecommenderConfig, files["config.json"])
    if ITEMS_FILE not in files:
        raise ModelLoadError(f"{ITEMS_FILE} is missing: a recommender needs it")
    if len(files[ITEMS_FILE]) > MOST_ITEM_BYTES:
        raise ModelLoadError(f"{ITEMS_FILE} has over {MOST_ITEM_BYTES >> 20} MiB: leave attributes out")
    read_items(files[ITEMS_FILE], config.attributes)
    return MAX_TOP_K


PART = TaskInputs(
    spec=RECOMMEND,
    prepare=prepare,
    cut_to_length=check_request,
    is_quick=lambda _request, _model: True,
    read_settings=config_for,
    is_folder=is_recommender,
    folder_files=(ITEMS_FILE,),
    folder_window=_checked,
    has_tokenizer=lambda _config: False,
)
