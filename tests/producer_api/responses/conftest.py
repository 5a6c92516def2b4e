"""Clients of two API servers, for responses."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from openai import OpenAI

from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from tests.producer_api.serving import serving


@pytest.fixture
def both(settings: Settings, model: ModelVersion, key: str) -> Iterator[list[OpenAI]]:
    """Clients of two API servers."""
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(settings)).url for _ in range(2)]
        made = [OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) for url in urls]
        yield [stack.enter_context(client) for client in made]
