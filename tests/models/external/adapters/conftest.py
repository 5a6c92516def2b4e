"""A server whose answers a test gives."""

from collections.abc import Iterator

import pytest

from tests.models.external.adapters.canned import Canned


@pytest.fixture
def server() -> Iterator[Canned]:
    canned = Canned()
    yield canned
    canned.close()
