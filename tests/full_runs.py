"""Cases of parametrised tests that only full runs make."""

from typing import Any

import pytest


def full(*cases: Any) -> list[Any]:
    """Cases for ``parametrize`` that run only with ``--full``; each is a tuple of arguments, or the only argument."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.full) for case in cases]
