"""Anthropic's official client against the server of the tests."""

from collections.abc import Iterator

import pytest
from anthropic import Anthropic

from tests.producer_api.serving import ApiServer


@pytest.fixture
def client(server: ApiServer, key: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key=key, max_retries=0, timeout=60) as client:
        yield client
