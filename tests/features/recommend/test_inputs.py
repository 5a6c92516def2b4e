"""What a recommendation is asked for: what is stored of it, and what is refused."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from headrace.features.recommend.inputs import FAKE as RECOMMENDER
from headrace.features.recommend.inputs import FAKE_ITEMS, RecommenderConfig, query_of
from headrace.features.recommend.task import (
    ItemFilter,
    RecommendedItem,
    RecommendOutput,
    RecommendPayload,
    RecommendRequest,
)
from tests.prompts.tasks.test_prepared import Model, prepared, refused
from tests.refusals import Naming

SOURCE = {"history": [{"id": "a"}]}


def test_the_payload_has_the_fields_of_the_request() -> None:
    body = {"top_k": 3, "exclude_history": False}
    found = prepared("recommend", Model(RECOMMENDER), input={"vector": [1] * 8}, **body)
    assert (found.num_tokens, found.max_tokens) == (1, 0)
    assert found.payload.model_dump(mode="json", exclude_unset=True, exclude={"input", "filter"}) == body


def test_what_older_processes_left_out_has_its_default() -> None:
    found = RecommendPayload.model_validate({"input": SOURCE})
    assert (found.filter, found.top_k, found.exclude_history) == (ItemFilter(), 10, True)
    with pytest.raises(ValidationError):
        RecommendPayload.model_validate({"input": SOURCE, "of_nobody": 1})
    item = RecommendedItem(id="a", score=1.0)
    assert (item.attributes, RecommendOutput(items=(item,)).unknown_ids) == ({}, ())


def test_texts_that_a_policy_may_not_change_are_those_of_the_filter() -> None:
    wanted = {
        "include_ids": ["i"],
        "exclude_ids": ["e"],
        "where": [{"attribute": "a", "one_of": ["x", 1, True, "y"]}, {"attribute": "b", "maximum": 2}],
    }
    body = {"task": "recommend", "model": "m", "input": SOURCE, "filter": wanted}
    assert TypeAdapter(RecommendRequest).validate_python(body).fixed_texts() == ("i", "e", "x", "y")


@pytest.mark.parametrize(
    ("source", "said", "param"),
    [({"vector": [1] * 7}, " 8", "input.vector"), ({"features": {"a": 1}}, "user tower", "input.features")],
)
def test_a_request_that_does_not_fit_is_told_its_place(source: dict[str, Any], said: str, param: str) -> None:
    message, code, where = refused("recommend", Model(RECOMMENDER), input=source)
    assert (code, where) == ("invalid_value", param)
    assert said in message


TOWER: dict[str, Any] = {
    "model_type": "headrace-recommender",
    "dimensions": 2,
    "user_tower": {"features": [{"name": "age", "type": "number", "mean": 1, "scale": 2}]},
}


def test_a_user_may_be_a_row_of_features() -> None:
    config = RecommenderConfig.model_validate(TOWER)
    found = prepared("recommend", Model(config), input={"features": {"age": 5}}, top_k=3)
    payload: Any = found.payload
    query = query_of(payload, config, FAKE_ITEMS)
    assert (found.num_tokens, query.row, query.vector, query.history) == (1, ((2.0,), ()), None, [])
    by_vector: Any = prepared("recommend", Model(config), input={"vector": [1, 2]}, top_k=3).payload
    assert (query_of(by_vector, config, FAKE_ITEMS).row, query_of(by_vector, config, FAKE_ITEMS).vector) == (
        None,
        (1, 2),
    )
    assert refused("recommend", Model(config), input={"features": {"age": "x"}}) == (
        Naming("`input.features.age`", " number"),
        "invalid_value",
        "input.features.age",
    )
