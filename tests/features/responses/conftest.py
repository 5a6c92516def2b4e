"""Clients of two API servers, for responses."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from openai import DefaultHttpxClient, OpenAI

from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from tests.producer_api.serving import NO_TLS, serving


@pytest.fixture
def both(settings: Settings, model: ModelVersion, key: str) -> Iterator[list[OpenAI]]:
    """Clients of two API servers."""
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(settings)).url for _ in range(2)]
        http_client = DefaultHttpxClient(verify=NO_TLS)
        made = [
            OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60, http_client=http_client)
            for url in urls
        ]
        yield [stack.enter_context(client) for client in made]
