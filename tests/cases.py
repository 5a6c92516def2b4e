"""Cases of parametrised tests: those of full runs only, and those of a feature."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from headrace.assembly import FEATURES


def some_of(num: int, names: str | Sequence[str], cases: Iterable[Any], **options: Any) -> pytest.MarkDecorator:
    """Return ``pytest.mark.parametrize`` for cases that differ in a detail: ``num`` of them, spread over all, run
    always, the others with ``--full`` or by their id."""
    listed = list(cases)
    is_one = isinstance(names, str) and "," not in names
    kept = {number * len(listed) // num for number in range(num)}
    marked = []
    for number, case in enumerate(listed):
        found = case if hasattr(case, "marks") else pytest.param(*([case] if is_one else case))
        marks = [*found.marks, *([] if number in kept else [pytest.mark.full])]
        marked.append(pytest.param(*found.values, id=found.id, marks=marks))
    return pytest.mark.parametrize(names, marked, **options)


def full(*cases: Any) -> list[Any]:
    """Cases for ``parametrize`` that run only with ``--full``; each is a tuple of arguments, or the only argument."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.full) for case in cases]


def of(feature: str, *cases: Any) -> tuple[Any, ...]:
    """Return the cases, or none if the feature is not in the list of features."""
    return cases if any(name.partition(".")[0] == feature for name in FEATURES) else ()
