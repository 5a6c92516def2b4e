"""Feature schemas: the numbers of each value, the message for each value that does not fit, and the bounds."""

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.features.predict.feature_schema import FeatureSchema, encode_rows, read_config
from headrace.features.predict.inputs import FAKE, TabularConfig
from headrace.store.errors import InvalidRequest, ModelLoadError

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC).timestamp()
PLAIN: list[dict[str, Any]] = [
    {"name": "amount", "type": "number", "minimum": 1, "maximum": 9, "mean": 2, "scale": 4},
    {"name": "count", "type": "integer", "missing": "imputed", "mean": 2.6, "maximum": 5},
    {"name": "is_new", "type": "boolean", "missing": "indicator"},
    {"name": "country", "type": "category", "categories": ["ch", "de"], "dimensions": 3},
    {"name": "at", "type": "timestamp", "mean": 20_000, "scale": 2, "earliest": "2026-01-01T00:00:00Z"},
    {
        "name": "colour",
        "type": "category",
        "categories": ["red", "blue"],
        "other": "embedded",
        "missing": "indicator",
        "dimensions": 2,
    },
]
ROW: dict[str, Any] = {"amount": 4, "count": 3.0, "is_new": True, "country": "de", "at": NOON, "colour": "red"}


def schema(*features: dict[str, Any]) -> FeatureSchema:
    return FeatureSchema.model_validate({"features": features})


def test_a_row_becomes_columns_and_categories_in_the_order_of_the_features() -> None:
    found = schema(*PLAIN)
    numbers, categories = found.encode(ROW, "input.rows[0]")
    day, week = math.tau * NOON / 86_400, math.tau * NOON / (7 * 86_400)
    assert numbers == pytest.approx(
        (0.5, 0.4, 1.0, 0.0, (NOON / 86_400 - 20_000) / 2, math.sin(day), math.cos(day), math.sin(week), math.cos(week))
    )
    assert categories == (1, 0)
    assert (found.num_columns, [one.num_rows for one in found.categorical]) == (9, [2, 4])
    assert found.spans() == [range(1), range(1, 2), range(2, 4), range(9, 12), range(4, 9), range(12, 14)]
    assert found.example == {
        "amount": 2.0,
        "count": 3,
        "is_new": False,
        "country": "ch",
        "at": datetime(2026, 1, 1, tzinfo=UTC).timestamp(),  # the mean lies before `earliest`
        "colour": "red",
    }


def test_what_is_missing_is_imputed_or_has_a_place_of_its_own() -> None:
    row = {name: value for name, value in ROW.items() if name not in ("count", "is_new", "colour")}
    numbers, categories = schema(*PLAIN).encode({**row, "is_new": None}, "row")
    assert numbers[1:4] == pytest.approx((0.4, 0.0, 1.0))
    assert categories == (1, 3)
    assert schema(*PLAIN).encode({**ROW, "colour": "green"}, "row")[1] == (1, 2)
    imputed = {"name": "x", "missing": "imputed"}
    given = schema(
        {**imputed, "name": "a", "type": "number", "impute": 7},
        {**imputed, "name": "b", "type": "boolean", "impute": True},
        {**imputed, "name": "c", "type": "timestamp", "impute": "1970-01-02T00:00:00Z"},
        {**imputed, "name": "d", "type": "category", "categories": ["x", "y"], "impute": "y", "dimensions": 1},
        {**imputed, "name": "e", "type": "number", "mean": -1, "minimum": 3, "maximum": 4},
    )
    numbers, categories = given.encode({}, "row")
    assert numbers == pytest.approx((7, 1, 1, 0, 1, math.sin(math.tau / 7), math.cos(math.tau / 7), 4))
    assert categories == (1,)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"amount": 0.5}, "from 1 to 9"),
        ({"amount": 9.5}, "from 1 to 9"),
        ({"amount": "4"}, "a number"),
        ({"amount": True}, "a number"),
        ({"amount": None}, "missing"),
        ({"count": 2.5}, "whole number"),
        ({"count": "2"}, "whole number"),
        ({"count": 6}, "at most 5"),
        ({"is_new": 1}, "true or false"),
        ({"country": "xx"}, ": ch, de"),
        ({"country": 1}, "a text"),
        ({"country": None}, "missing"),
        ({"at": "2026-11-28T12:00:00"}, "an offset"),
        ({"at": "noon"}, "an offset"),
        ({"at": True}, "Unix seconds"),
        ({"at": 0}, "from 2026-01-01T00:00:00+00:00 to 9999-12-31T23:59:59+00:00"),
        ({"colors": 1, "b": 2}, "amount, count, is_new, country, at, colour"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_the_reason(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        encode_rows(schema(*PLAIN), [ROW, {**ROW, **changed}])
    assert refused.value.message.startswith(f"`{refused.value.param}`")
    assert said in refused.value.message
    assert refused.value.param == f"input.rows[1].{next(iter(changed))}"


def test_long_lists_of_names_are_cut() -> None:
    names = [f"c{number}{'x' * 70}" for number in range(12)]
    found = schema({"name": "c", "type": "category", "categories": names, "dimensions": 1})
    with pytest.raises(InvalidRequest) as refused:
        found.encode({"c": "no"}, "row")
    shown = ", ".join(name[:64] for name in names[:10])
    assert refused.value.message.endswith(f": {shown} and 2 more")
    found = schema(*({"name": f"f{number}", "type": "boolean"} for number in range(11)))
    with pytest.raises(InvalidRequest) as refused:
        found.encode({"y" * 70: 1}, "row")
    shown = ", ".join(f"f{number}" for number in range(10))
    assert refused.value.message.startswith(f"`row.{'y' * 64}` ")
    assert refused.value.message.endswith(f" {shown}, ...")


@pytest.mark.parametrize("value", [10**400, 3e38, -3e38])
def test_a_number_that_no_float32_holds_is_refused(value: float) -> None:
    with pytest.raises(InvalidRequest, match=r"`row\.x`.* too large"):
        schema({"name": "x", "type": "number"}).encode({"x": value}, "row")


CATEGORY: dict[str, Any] = {"name": "c", "type": "category", "categories": ["a", "b"], "dimensions": 1}


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ([CATEGORY | {"categories": ["a", "a"]}], "listed twice"),
        ([CATEGORY | {"impute": "a"}], "`impute` goes with `missing`"),
        ([CATEGORY | {"missing": "imputed"}], "`impute` goes with `missing`"),
        ([CATEGORY | {"missing": "imputed", "impute": "z"}], "`impute` is no category"),
        ([CATEGORY | {"dimensions": 0}], "features.0.category.dimensions: "),
        ([CATEGORY | {"dimensions": 1025}], "features.0.category.dimensions: "),
        ([CATEGORY, {"name": "c", "type": "boolean"}], "same name"),
        ([{"name": "x", "type": "number", "scale": 0}], "scale: "),
        ([{"name": "", "type": "number"}], "name: "),
        ([{"name": "x" * 101, "type": "number"}], "name: "),
        (
            [{"name": "x", "type": "number", "impute": 7, "maximum": 5, "missing": "imputed"}, CATEGORY],
            None,
        ),
        ([{"name": "x", "type": "number", "minimum": 9, "maximum": 5}], "from 9 to 5"),
        ([], "features: "),
    ],
)
def test_a_schema_that_cannot_work_is_refused_with_the_field(features: list[dict[str, Any]], said: str | None) -> None:
    config = {"model_type": "headrace-tabular", "objective": "regression", "features": features}
    content = json.dumps(config).encode()
    if said is None:
        assert read_config(TabularConfig, content).features[0].example == 5.0
        return
    with pytest.raises(ModelLoadError) as refused:
        read_config(TabularConfig, content)
    assert refused.value.message.startswith("config.json: ")
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"objective": "binary", "classes": ["a"]}, "1 classes"),
        ({"objective": "binary", "classes": ["a", "b", "c"]}, "3 classes"),
        ({"objective": "multiclass", "classes": ["a"]}, "1 classes"),
        ({"objective": "regression", "classes": ["a"]}, "1 classes"),
        ({"objective": "binary", "classes": ["a", "a"]}, "listed twice"),
        ({"threshold": 0}, "threshold: "),
        ({"threshold": 1}, "threshold: "),
        ({"target_scale": 0}, "target_scale: "),
        ({"hidden": [0]}, "hidden.0: "),
        ({"hidden": [1] * 17}, "hidden: "),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_with_the_field(changed: dict[str, Any], said: str) -> None:
    config = FAKE.model_dump(mode="json") | changed
    with pytest.raises(ModelLoadError) as refused:
        read_config(TabularConfig, json.dumps(config).encode())
    assert said in refused.value.message


def test_only_several_classes_have_an_output_each() -> None:
    config = FAKE.model_dump(mode="json")
    several = TabularConfig.model_validate(config | {"objective": "multiclass", "classes": ["a", "b", "c"]})
    number = TabularConfig.model_validate(config | {"objective": "regression", "classes": []})
    assert (FAKE.num_outputs, several.num_outputs, number.num_outputs, FAKE.threshold) == (1, 3, 1, 0.5)
