"""The default template of a version: a prompt template as it was filled in when the version was registered.

It is a copy, so it outlives the prompt and never changes. It stands in the registry, which belongs to no tenant.
"""

from typing import Annotated

from pydantic import Field

from headrace.store.payloads.conversation import ChatMessage
from headrace.store.payloads.prompt_reference import PromptUse
from headrace.store.payloads.strict_model import Strict


class DefaultTemplate(Strict):
    """The messages that come before those of a request, and the version of the prompt that they were made from.

    ``digest``: SHA-256 of the template.
    """

    id: str
    name: str
    version: int
    digest: str
    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1)]

    @property
    def use(self) -> PromptUse:
        """What a job records of it."""
        return PromptUse(id=self.id, name=self.name, version=self.version, digest=self.digest)
