"""The feature schema of a tabular model: what a row may hold, and the numbers that the model is given for it.

The API checks rows with it, and the worker encodes them with it. It is the list ``features`` of ``config.json``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

from pydantic import AwareDatetime, Field, FiniteFloat, StringConstraints, ValidationError, model_validator

from headrace.features.predict.task import MAX_FEATURES, FeatureValue
from headrace.store.errors import InvalidRequest, ModelLoadError
from headrace.store.payloads.strict_model import Strict

_LARGEST = 3e38  # of float32
_DAY_S = 86_400.0
_LAST_S = 253_402_300_799  # of the year 9999
_SHOWN_CATEGORIES = 10
_SHOWN_CHARS = 64

ConfigT = TypeVar("ConfigT", bound=Strict)
EncodedRow: TypeAlias = tuple[tuple[float, ...], tuple[int, ...]]
"""The numbers of a row, and for each feature with categories the number of its category."""


class BadValue(ValueError):
    """The reason why a value does not fit its feature; it does not quote the value."""


class MissingValues(StrEnum):
    """The treatment of a field that a row lacks, or that is null."""

    REFUSED = "refused"
    IMPUTED = "imputed"  # by the feature's `impute`
    INDICATOR = "indicator"  # an own column or an own category says that it is missing


class _Feature(Strict):
    """The base of all features. ``missing``: see ``MissingValues``."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    description: str | None = None
    missing: MissingValues = MissingValues.REFUSED


class _Columns(_Feature):
    """A feature that becomes columns of numbers."""

    @property
    def num_columns(self) -> int:
        """The number of columns."""
        return self.width + (self.missing is MissingValues.INDICATOR)

    @property
    def width(self) -> int:
        """The number of columns without the one that marks a missing value."""
        return 1

    def encode(self, value: FeatureValue) -> tuple[float, ...]:
        """Return the columns of a value. Raises BadValue."""
        if self.missing is not MissingValues.INDICATOR:
            return self.columns(self.imputed if value is None else value)
        return (*[0.0] * self.width, 1.0) if value is None else (*self.columns(value), 0.0)

    @property
    def imputed(self) -> FeatureValue:
        """The value in place of a missing one. Raises BadValue."""
        if self.missing is MissingValues.REFUSED:
            raise BadValue("it is missing, and the model needs it")
        return self.example

    @property
    def example(self) -> FeatureValue:
        """A typical value."""
        raise NotImplementedError

    def columns(self, value: FeatureValue) -> tuple[float, ...]:
        """Return the columns of a value that is there. Raises BadValue."""
        raise NotImplementedError


class NumberFeature(_Columns):
    """A number, standardised by ``mean`` and ``scale``. ``impute`` is the mean if it is not given."""

    type: Literal["number", "integer"]
    minimum: FiniteFloat | None = None
    maximum: FiniteFloat | None = None
    mean: FiniteFloat = 0.0
    scale: Annotated[FiniteFloat, Field(gt=0)] = 1.0
    impute: FiniteFloat | None = None

    @property
    def example(self) -> FeatureValue:
        """The imputed value, else the mean, in the feature's range."""
        typical = self.mean if self.impute is None else self.impute
        inside = min(max(typical, -math.inf if self.minimum is None else self.minimum), self._most)
        return round(inside) if self.type == "integer" and self.impute is None else inside

    @property
    def _most(self) -> float:
        return math.inf if self.maximum is None else self.maximum

    def columns(self, value: FeatureValue) -> tuple[float, ...]:
        """Return one column. A whole number may be written as 3.0."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadValue(f"it must be {'a whole number' if self.type == 'integer' else 'a number'}")
        if self.type == "integer" and value != value // 1 and value is not self.impute:
            raise BadValue("it must be a whole number")
        if (self.minimum is not None and value < self.minimum) or value > self._most:
            raise BadValue(f"it must be {_range_of(self.minimum, self.maximum)}")
        return (_standardised(value, self.mean, self.scale),)


class BooleanFeature(_Columns):
    """True or false, as 1 or 0."""

    type: Literal["boolean"]
    impute: bool = False

    @property
    def example(self) -> FeatureValue:
        """The imputed value."""
        return self.impute

    def columns(self, value: FeatureValue) -> tuple[float, ...]:
        """Return one column."""
        if not isinstance(value, bool):
            raise BadValue("it must be true or false")
        return (float(value),)


class TimestampFeature(_Columns):
    """A point in time: RFC 3339 text with an offset, or Unix seconds.

    Its columns are the days since 1970, standardised by ``mean`` and ``scale``, and the sine and cosine of the time of
    the day and of the week, in UTC.
    """

    type: Literal["timestamp"]
    earliest: AwareDatetime | None = None
    latest: AwareDatetime | None = None
    mean: FiniteFloat = 0.0
    scale: Annotated[FiniteFloat, Field(gt=0)] = 1.0
    impute: AwareDatetime | None = None

    @property
    def width(self) -> int:
        """Days, and two columns for each of the two cycles."""
        return 5

    @property
    def example(self) -> FeatureValue:
        """The imputed value, else the mean, in the feature's range."""
        if self.impute is not None:
            return self.impute.timestamp()
        first, last = self._range
        return min(max(self.mean * _DAY_S, first), last)

    @cached_property
    def _range(self) -> tuple[float, float]:
        first = 0.0 if self.earliest is None else self.earliest.timestamp()
        return first, float(_LAST_S) if self.latest is None else self.latest.timestamp()

    def columns(self, value: FeatureValue) -> tuple[float, ...]:
        """Return five columns."""
        seconds = _seconds_of(value)
        first, last = self._range
        if not first <= seconds <= last:
            raise BadValue(f"it must be a time from {_shown_time(first)} to {_shown_time(last)}")
        day, week = math.tau * seconds / _DAY_S, math.tau * seconds / (7 * _DAY_S)
        days = _standardised(seconds / _DAY_S, self.mean, self.scale)
        return days, math.sin(day), math.cos(day), math.sin(week), math.cos(week)


class CategoryFeature(_Feature):
    """One of ``categories``, by an embedding of ``dimensions`` numbers.

    The rows of the embedding are the categories, then one for all others if ``other`` is ``embedded``, then one for
    missing values if ``missing`` is ``indicator``.
    """

    type: Literal["category"]
    categories: Annotated[tuple[str, ...], Field(min_length=1, max_length=100_000)]
    other: Literal["refused", "embedded"] = "refused"
    dimensions: int = Field(ge=1, le=1024)
    impute: str | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if len(set(self.categories)) != len(self.categories):
            raise ValueError("a category is listed twice")
        if (self.missing is MissingValues.IMPUTED) != (self.impute is not None):
            raise ValueError("`impute` goes with `missing` imputed, and names a category")
        if self.impute is not None and self.impute not in self.categories:
            raise ValueError("`impute` is no category of the feature")
        return self

    @property
    def num_rows(self) -> int:
        """The rows of the embedding."""
        return len(self.categories) + (self.other == "embedded") + (self.missing is MissingValues.INDICATOR)

    @property
    def example(self) -> FeatureValue:
        """The first category."""
        return self.categories[0]

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        return {category: number for number, category in enumerate(self.categories)}

    def index(self, value: FeatureValue) -> int:
        """Return the row of the embedding for a value. Raises BadValue."""
        if value is None:
            if self.missing is MissingValues.INDICATOR:
                return self.num_rows - 1
            if self.impute is None:
                raise BadValue("it is missing, and the model needs it")
            value = self.impute
        if not isinstance(value, str):
            raise BadValue("it must be a text, the name of a category")
        found = self._numbers.get(value)
        if found is not None:
            return found
        if self.other == "refused":
            raise BadValue(f"it is not a category of the model: {self._shown}")
        return len(self.categories)

    @property
    def _shown(self) -> str:
        more = len(self.categories) - _SHOWN_CATEGORIES
        shown = ", ".join(one[:_SHOWN_CHARS] for one in self.categories[:_SHOWN_CATEGORIES])
        return f"{shown} and {more} more" if more > 0 else shown


Feature = Annotated[
    NumberFeature | BooleanFeature | TimestampFeature | CategoryFeature,
    Field(discriminator="type"),
]


class FeatureSchema(Strict):
    """The features of a model, in the order of its inputs."""

    features: Annotated[tuple[Feature, ...], Field(min_length=1, max_length=MAX_FEATURES)]

    @model_validator(mode="after")
    def _has_each_name_once(self) -> Self:
        if len(self.names) != len(self.features):
            raise ValueError("two features have the same name")
        for feature in self.features:
            try:
                _encoded(feature, None if feature.missing is MissingValues.IMPUTED else feature.example)
            except BadValue as error:
                raise ValueError(f"the values of {feature.name} do not fit each other: {error}") from None
        return self

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of all features."""
        return frozenset(feature.name for feature in self.features)

    @property
    def categorical(self) -> Iterator[CategoryFeature]:
        """The features that have an embedding, in order."""
        return (feature for feature in self.features if isinstance(feature, CategoryFeature))

    @property
    def num_columns(self) -> int:
        """The columns of numbers that all other features become."""
        return sum(feature.num_columns for feature in self.features if isinstance(feature, _Columns))

    @property
    def example(self) -> dict[str, FeatureValue]:
        """A row that the model takes."""
        return {feature.name: feature.example for feature in self.features}

    def spans(self) -> list[range]:
        """Return for each feature its positions in the model's input: all columns, then all embeddings."""
        column, place = 0, self.num_columns
        found = []
        for feature in self.features:
            if isinstance(feature, CategoryFeature):
                found.append(range(place, place := place + feature.dimensions))
            else:
                found.append(range(column, column := column + feature.num_columns))
        return found

    def encode(self, row: Mapping[str, FeatureValue], param: str) -> EncodedRow:
        """Return the encoded row. Raises InvalidRequest, which names the field, such as ``input.rows[3].amount``."""
        if not row.keys() <= self.names:
            raise self._unknown(row, param)
        numbers: list[float] = []
        categories: list[int] = []
        for feature in self.features:
            try:
                if isinstance(feature, CategoryFeature):
                    categories.append(feature.index(row.get(feature.name)))
                else:
                    numbers.extend(feature.encode(row.get(feature.name)))
            except BadValue as error:
                place = f"{param}.{feature.name}"
                raise InvalidRequest(f"`{place}`: {error}", param=place) from None
        return tuple(numbers), tuple(categories)

    def _unknown(self, row: Mapping[str, FeatureValue], param: str) -> InvalidRequest:
        unknown = [name for name in row if name not in self.names]
        place = f"{param}.{unknown[0][:_SHOWN_CHARS]}"
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        names = [feature.name for feature in self.features]
        known = ", ".join(names[:_SHOWN_CATEGORIES]) + (", ..." if len(names) > _SHOWN_CATEGORIES else "")
        return InvalidRequest(f"`{place}` is no feature of the model{more}: it has {known}", param=place)


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """The rows of a request, as a runner takes them. ``explain``: contributions are asked for."""

    numbers: Sequence[tuple[float, ...]]
    categories: Sequence[tuple[int, ...]]
    explain: bool = False


def encode_rows(
    schema: FeatureSchema, rows: Sequence[Mapping[str, FeatureValue]], *, explain: bool = False
) -> EncodedRows:
    """Return the rows of a request as numbers. Raises InvalidRequest for the first field that is wrong."""
    encoded = [schema.encode(row, f"input.rows[{number}]") for number, row in enumerate(rows)]
    return EncodedRows([numbers for numbers, _ in encoded], [categories for _, categories in encoded], explain)


def read_config(kind: type[ConfigT], content: bytes) -> ConfigT:
    """Parse a ``config.json`` that is all ours. Raises ModelLoadError, which names the first wrong field."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ModelLoadError(f"config.json: {place + ': ' if place else ''}{first['msg']}") from None


def _encoded(feature: Any, value: FeatureValue) -> Any:
    return feature.index(value) if isinstance(feature, CategoryFeature) else feature.encode(value)


def _standardised(value: float, mean: float, scale: float) -> float:
    try:
        number = (value - mean) / scale
    except OverflowError:
        number = math.inf
    if not -_LARGEST < number < _LARGEST:
        raise BadValue("it is too large for the model")
    return number


def _seconds_of(value: FeatureValue) -> float:
    if isinstance(value, str):
        try:
            when = datetime.fromisoformat(value)
        except ValueError:
            when = None
        if when is None or when.tzinfo is None:
            raise BadValue("it must be a time such as 2026-11-28T12:30:00Z, with an offset")
        return when.timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadValue("it must be a time such as 2026-11-28T12:30:00Z, or Unix seconds")
    return value


def _shown_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _range_of(minimum: float | None, maximum: float | None) -> str:
    if minimum is None:
        return f"at most {maximum:g}"
    return f"at least {minimum:g}" if maximum is None else f"from {minimum:g} to {maximum:g}"
