"""A local stack on the real model, as the tests of this folder see it."""

from dataclasses import dataclass

import httpx2
from openai import OpenAI

from cli.local.home import Home, StackRecord
from cli.local.stack import Stack


@dataclass(frozen=True)
class Running:
    """A stack that serves SmolLM2."""

    stack: Stack
    home: Home
    record: StackRecord

    @property
    def client(self) -> OpenAI:
        """The official client, with no retries to hide anything."""
        return OpenAI(base_url=f"{self.stack.api_url}/v1", api_key=self.stack.api_key, max_retries=0)

    def flower(self, path: str) -> httpx2.Response:
        """A page of Flower."""
        auth = (self.stack.flower_user, self.stack.flower_password)
        return httpx2.get(self.stack.flower_url + path, auth=auth, timeout=30).raise_for_status()
