"""The attributes of all items as columns, so that a condition is compared with every item at once."""

import math
from collections.abc import Callable, Sequence

import torch

from headrace.features.recommend.items import Items
from headrace.features.recommend.task import AttributeCondition

_MISSING = -1


class AttributeColumns:
    """Columns by the name of the attribute, made when the items are loaded."""

    def __init__(self, items: Items, names: list[str]) -> None:
        self._matching: dict[str, Callable[[AttributeCondition], torch.Tensor]] = {}
        for name in names:
            values = [item.attributes.get(name) for item in items.items]
            is_number = all(value is None or (not isinstance(value, bool | str)) for value in values)
            self._matching[name] = _Numbers(values) if is_number else _Codes(values)

    def matching(self, condition: AttributeCondition) -> torch.Tensor:
        """Return for each item whether it matches, as ``features.recommend.items.Item.matches`` says."""
        return self._matching[condition.attribute](condition)


class _Numbers:
    def __init__(self, values: Sequence[object]) -> None:
        self._column = torch.tensor(
            [float(value) if isinstance(value, int | float) else math.nan for value in values], dtype=torch.float64
        )

    def __call__(self, condition: AttributeCondition) -> torch.Tensor:
        column = self._column
        if condition.one_of is not None:
            return torch.isin(column, torch.tensor([float(value) for value in condition.one_of], dtype=torch.float64))
        # A comparison with NaN is false, so a missing value matches nothing.
        at_least = column >= (-math.inf if condition.minimum is None else condition.minimum)
        return at_least & (column <= (math.inf if condition.maximum is None else condition.maximum))


class _Codes:
    def __init__(self, values: Sequence[object]) -> None:
        self._codes: dict[object, int] = {}
        for value in values:
            if value is not None:
                self._codes.setdefault(value, len(self._codes))
        self._column = torch.tensor([_MISSING if value is None else self._codes[value] for value in values])

    def __call__(self, condition: AttributeCondition) -> torch.Tensor:
        wanted = [self._codes[value] for value in condition.one_of or () if value in self._codes]
        return torch.isin(self._column, torch.tensor(wanted, dtype=torch.long))
