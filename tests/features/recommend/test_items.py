"""The items of a recommender: their file, the conditions of a filter, and which items a request means."""

import json
from typing import Any

import pytest

from headrace.features.recommend.inputs import FAKE, FAKE_ITEMS, RecommenderConfig, query_of
from headrace.features.recommend.items import AttributeType, Item, check_filter, read_items
from headrace.features.recommend.task import AttributeCondition, ItemFilter, RecommendPayload
from headrace.store.errors import InvalidRequest, ModelLoadError

TYPES = {"price": AttributeType.NUMBER, "brand": AttributeType.TEXT, "is_new": AttributeType.BOOLEAN}
ITEM = Item(id="i", attributes={"price": 5, "brand": "x", "is_new": True})


def lines(*items: dict[str, Any]) -> bytes:
    return "\n".join(map(json.dumps, items)).encode()


@pytest.mark.parametrize(
    ("condition", "matches"),
    [
        ({"attribute": "price", "minimum": 5}, True),
        ({"attribute": "price", "minimum": 5.1}, False),
        ({"attribute": "price", "maximum": 5}, True),
        ({"attribute": "price", "maximum": 4.9}, False),
        ({"attribute": "price", "minimum": 4, "maximum": 4.5}, False),
        ({"attribute": "brand", "one_of": ["y", "x"]}, True),
        ({"attribute": "brand", "one_of": ["y"]}, False),
        ({"attribute": "brand", "minimum": 1}, False),
        ({"attribute": "size", "one_of": ["x"]}, False),
    ],
)
def test_an_item_matches_a_condition(condition: dict[str, Any], matches: bool) -> None:
    assert ITEM.matches(AttributeCondition.model_validate(condition)) is matches


def test_a_file_is_read_in_its_order() -> None:
    items = read_items(lines({"id": "b", "attributes": {"price": 1.5}}, {"id": "a"}), TYPES)
    assert items.places == {"b": 0, "a": 1}
    assert items.known(["a", "z", "b", "a"]) == [1, 0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no line"),
        (lines({"id": "a"}, {"id": "a"}), "twice"),
        (lines({"id": "a"}, {"ID": "b"}), "line 2: id: "),
        (lines({"id": ""}), "line 1: id: "),
        *(
            (lines({"id": "a", "attributes": given}), f"line 1: {next(iter(given))} ")
            for given in ({"size": 1}, {"price": "1"}, {"price": True}, {"brand": 1}, {"is_new": 1})
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_line(content: bytes, said: str) -> None:
    with pytest.raises(ModelLoadError) as refused:
        read_items(content, TYPES)
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("condition", "said", "param"),
    [
        ({"attribute": "size", "minimum": 1}, "price, brand, is_new", "filter.where[1].attribute"),
        ({"attribute": "brand", "maximum": 1}, "brand is a text", "filter.where[1]"),
        ({"attribute": "is_new", "minimum": 1}, "is_new is a boolean", "filter.where[1]"),
        ({"attribute": "price", "one_of": [1, "x"]}, "price is a number", "filter.where[1].one_of"),
    ],
)
def test_a_condition_that_fits_no_item_is_refused(condition: dict[str, Any], said: str, param: str) -> None:
    wanted = ItemFilter.model_validate({"where": [{"attribute": "is_new", "one_of": [True]}, condition]})
    with pytest.raises(InvalidRequest) as refused:
        check_filter(wanted, TYPES)
    assert refused.value.param == param
    assert said in refused.value.message
    with pytest.raises(InvalidRequest, match="they have none"):
        check_filter(wanted, {})


def payload(**fields: Any) -> RecommendPayload:
    base = {"input": {"history": [{"id": "item-3", "weight": 2}, {"id": "gone"}, {"id": "item-1"}]}, "top_k": 4}
    return RecommendPayload.model_validate(base | fields)


def test_a_query_has_the_places_of_the_items_that_the_version_has() -> None:
    wanted = {"include_ids": ["item-9", "gone"], "exclude_ids": ["item-7"]}
    query = query_of(payload(filter=wanted, exclude_history=True), FAKE, FAKE_ITEMS)
    assert (query.top_k, query.history, query.weights) == (4, [3, 1], [2.0, 1.0])
    assert (query.only, query.without, query.vector, query.row) == ([9], [7, 3, 1], None, None)
    query = query_of(payload(exclude_history=False), FAKE, FAKE_ITEMS)
    assert (query.only, query.without) == (None, [])
    assert query_of(payload(filter={"include_ids": []}), FAKE, FAKE_ITEMS).only == []
    by_vector = query_of(payload(input={"vector": [0.5] * 8}), FAKE, FAKE_ITEMS)
    assert (by_vector.vector, by_vector.history) == ((0.5,) * 8, [])
    with pytest.raises(InvalidRequest, match="history") as refused:
        query_of(payload(input={"history": [{"id": "gone"}]}), FAKE, FAKE_ITEMS)
    assert refused.value.param == "input.history"


def test_features_go_through_the_user_tower() -> None:
    tower = {"features": [{"name": "age", "type": "number", "mean": 10, "scale": 5}]}
    config = RecommenderConfig.model_validate(FAKE.model_dump(mode="json") | {"user_tower": tower})
    query = query_of(payload(input={"features": {"age": 20}}), config, FAKE_ITEMS)
    assert query.row == ((2.0,), ())
    with pytest.raises(InvalidRequest) as refused:
        query_of(payload(input={"features": {"size": 20}}), config, FAKE_ITEMS)
    assert refused.value.param == "input.features.size"
