"""One engine of the contract for each test that asks for a ``rig``."""

from collections.abc import Iterator

import pytest

from tests.models.external.engines import ENGINES, Rig


@pytest.fixture(params=ENGINES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with ENGINES[request.param]() as made:
        yield made
