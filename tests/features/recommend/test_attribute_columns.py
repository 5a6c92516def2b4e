"""Conditions on attributes of items."""

from typing import Any

import pytest

from headrace.features.recommend.attribute_columns import AttributeColumns
from headrace.features.recommend.items import Item, Items
from headrace.features.recommend.task import AttributeCondition

ITEMS = Items(
    tuple(
        Item(id=name, attributes=attributes)
        for name, attributes in (
            ("a", {"price": 5, "kind": "x", "new": True}),
            ("b", {"price": 7.5, "kind": "y", "new": False}),
            ("c", {}),
        )
    )
)


@pytest.mark.parametrize(
    ("condition", "places"),
    [
        ({"attribute": "price", "minimum": 5}, [0, 1]),
        ({"attribute": "price", "minimum": 5.1}, [1]),
        ({"attribute": "price", "maximum": 7.5}, [0, 1]),
        ({"attribute": "price", "minimum": 5, "maximum": 7}, [0]),
        ({"attribute": "price", "one_of": [7.5, 3]}, [1]),
        ({"attribute": "kind", "one_of": ["y", "z"]}, [1]),
        ({"attribute": "kind", "one_of": ["z"]}, []),
        ({"attribute": "new", "one_of": [False]}, [1]),
        ({"attribute": "none", "maximum": 9}, []),
    ],
)
def test_a_condition_is_compared_with_every_item(condition: dict[str, Any], places: list[int]) -> None:
    columns = AttributeColumns(ITEMS, ["price", "kind", "new", "none"])
    found = columns.matching(AttributeCondition.model_validate(condition))
    assert found.nonzero()[:, 0].tolist() == places
