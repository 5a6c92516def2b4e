"""Request and response models of OpenAI's conversations."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from headrace.features.responses.conversations import Conversation
from headrace.features.responses.response_items import InputItem
from headrace.producer_api.http.job_options import Metadata
from headrace.store.payloads.strict_model import Body

Items = Annotated[tuple[InputItem, ...], Field(max_length=20)]

_ITEMS: list[Any] = [{"type": "message", "role": "user", "content": "What does a headrace do?"}]


class ConversationRef(Body):
    """A conversation by its id."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: str


class NewConversation(Body):
    """The body of ``POST /v1/conversations``."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        json_schema_extra={"examples": [{"items": _ITEMS, "metadata": {"topic": "water"}}]},
    )

    items: Items | None = Field(None, description="its first items")
    metadata: Metadata | None = None


class ConversationChanges(Body):
    """The body of ``POST /v1/conversations/{conversation_id}``."""

    model_config = ConfigDict(
        extra="allow", frozen=True, json_schema_extra={"examples": [{"metadata": {"topic": "mills"}}]}
    )

    metadata: Metadata | None = Field(description="replaces all of it; null: none")


class NewItems(Body):
    """The body of ``POST /v1/conversations/{conversation_id}/items``."""

    model_config = ConfigDict(extra="allow", frozen=True, json_schema_extra={"examples": [{"items": _ITEMS}]})

    items: Annotated[Items, Field(min_length=1)] = Field(description="added at the end")


class ConversationObject(BaseModel):
    """A conversation."""

    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: dict[str, str]


class ConversationItemList(BaseModel):
    """A page of a conversation's items."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


def conversation_object(found: Conversation) -> ConversationObject:
    """Return the conversation."""
    return ConversationObject(id=found.id, created_at=int(found.created_at.timestamp()), metadata=found.metadata)


def item_list(items: Sequence[dict[str, Any]], limit: int) -> ConversationItemList:
    """Return a page; ``items`` are up to ``limit + 1``."""
    data = list(items[:limit])
    return ConversationItemList(
        data=data,
        first_id=data[0]["id"] if data else None,
        last_id=data[-1]["id"] if data else None,
        has_more=len(items) > limit,
    )
