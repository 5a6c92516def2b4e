"""The items of a recommender: their ids and attributes from ``items.jsonl``, and which of them match a filter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from pydantic import Field, ValidationError

from headrace.features.recommend.task import AttributeCondition, AttributeValue, ItemFilter, ItemId
from headrace.store.errors import InvalidRequest, ModelLoadError
from headrace.store.payloads.strict_model import Strict


class AttributeType(StrEnum):
    """The type of an attribute."""

    NUMBER = "number"
    TEXT = "text"
    BOOLEAN = "boolean"

    def fits(self, value: AttributeValue) -> bool:
        """Return True for a value of this type."""
        match self:
            case AttributeType.TEXT:
                return isinstance(value, str)
            case AttributeType.BOOLEAN:
                return isinstance(value, bool)
            case AttributeType.NUMBER:
                return isinstance(value, int | float) and not isinstance(value, bool)


class Item(Strict):
    """A line of ``items.jsonl``."""

    id: ItemId
    attributes: dict[str, AttributeValue] = Field(default_factory=dict)

    def matches(self, condition: AttributeCondition) -> bool:
        """Return True if the item has the attribute, and it is as the condition says."""
        value = self.attributes.get(condition.attribute)
        if value is None:
            return False
        if condition.one_of is not None:
            return value in condition.one_of
        return isinstance(value, int | float) and (
            (condition.minimum is None or value >= condition.minimum)
            and (condition.maximum is None or value <= condition.maximum)
        )


@dataclass(frozen=True)
class Items:
    """All items of a version, in the order of their vectors."""

    items: Sequence[Item] = field(repr=False)

    @cached_property
    def places(self) -> Mapping[str, int]:
        """The place of each id."""
        return {item.id: place for place, item in enumerate(self.items)}

    def known(self, ids: Sequence[str]) -> list[int]:
        """Return the places of the ids that the version has, each once."""
        return list({self.places[one]: None for one in ids if one in self.places})


def read_items(content: bytes, attributes: Mapping[str, AttributeType]) -> Items:
    """Parse ``items.jsonl``. Raises ModelLoadError, which names the line."""
    found: list[Item] = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            item = Item.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ModelLoadError(f"items.jsonl, line {number}: {place}: {first['msg']}") from None
        for name, value in item.attributes.items():
            if name not in attributes or not attributes[name].fits(value):
                raise ModelLoadError(f"items.jsonl, line {number}: {name} is no attribute that config.json describes")
        found.append(item)
    items = Items(found)
    if not found or len(items.places) != len(found):
        raise ModelLoadError("items.jsonl has no line" if not found else "items.jsonl has an id twice")
    return items


def check_filter(wanted: ItemFilter, attributes: Mapping[str, AttributeType]) -> None:
    """Raise InvalidRequest for a condition on an attribute that the items do not have, or of another type."""
    for number, condition in enumerate(wanted.where):
        place = f"filter.where[{number}]"
        kind = attributes.get(condition.attribute)
        if kind is None:
            known = ", ".join(list(attributes)[:10]) or "none"
            raise InvalidRequest(
                f"`{place}.attribute`: the items have no such attribute: they have {known}", param=f"{place}.attribute"
            )
        if condition.one_of is None and kind is not AttributeType.NUMBER:
            raise InvalidRequest(f"`{place}`: {condition.attribute} is a {kind}: give `one_of`", param=place)
        if any(not kind.fits(value) for value in condition.one_of or ()):
            raise InvalidRequest(f"`{place}.one_of`: {condition.attribute} is a {kind}", param=f"{place}.one_of")
