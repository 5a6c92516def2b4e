"""Routes of OpenAI's conversations: items that responses continue from, and to which they add what is new."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.features.openai.message_parts import ImagePart
from headrace.features.responses import conversations
from headrace.features.responses.conversation_views import (
    ConversationChanges,
    ConversationItemList,
    ConversationObject,
    Items,
    NewConversation,
    NewItems,
    conversation_object,
    item_list,
)
from headrace.features.responses.response_items import Item, images_in, read_items
from headrace.features.responses.response_jobs import settle
from headrace.features.responses.response_request import Includable
from headrace.producer_api.access.auth import JobsReader, JobsWriter
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import Deleted, JsonResponse, ObjectResponse
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED, from_validation
from headrace.prompts.vision.image_sources import check_image
from headrace.store.calls.addresses import check_url
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import MAX_IMAGES, MessageImage
from headrace.store.settings import Settings

router = APIRouter(prefix="/v1/conversations", tags=["openai"], route_class=StrictJsonRoute, responses=DOCUMENTED)

ConversationId = Annotated[str, Path(examples=["conv_0197f0c2a3b47d518e9a2b6c7d8e9f01"])]
ItemId = Annotated[str, Path(examples=["msg_0197f0c2a3b47d518e9a2b6c7d8e9f01"])]
Include = Annotated[list[Includable] | None, Query(alias="include[]", description="has no effect")]


def _items(runtime: Runtime, tenant_id: str, given: Items) -> list[Item]:
    """Return the items as they are stored. Raises InvalidRequest, also if the policy for every model forbids them."""
    items = read_items(given, {}, "items")
    images = list(images_in(items))
    if len(images) > MAX_IMAGES:
        raise InvalidRequest(f"`items` have {len(images)} images: at most {MAX_IMAGES} are accepted", param="items")
    found = runtime.guards.in_force(tenant_id)
    if found is not None and images:
        found.check_images(images[0][0])
    for place, part in images:
        _check_image(part, place, runtime.settings)
    if found is not None:
        # Their placeholders would have no values: those of a response have them in its job.
        found.check_unchanged(items, "items", "these items: send them as the input of a response", with_names=True)
    return items


def _check_image(part: ImagePart, place: str, settings: Settings) -> None:
    """Raise InvalidRequest for an image that no response could use, by its header. The worker decodes it, and reads a
    file or a server."""
    try:
        image = MessageImage.model_validate({name: value for name, value in part.fields.items() if value is not None})
    except ValidationError as error:
        complaint = from_validation(error.errors(include_input=False))
        complaint.param = f"{place}.{complaint.param}" if complaint.param else place
        raise complaint from None
    check_image(image, place)
    if image.server_url is not None:
        check_url(image.server_url, settings, param=place, code="invalid_image")


def _metadata(runtime: Runtime, tenant_id: str, given: dict[str, str] | None) -> dict[str, str]:
    found = runtime.guards.in_force(tenant_id)
    metadata = dict(given or {})
    if found is None:
        return metadata
    policed: dict[str, str] = found.fields({"metadata": metadata}, "metadata")["metadata"]
    return policed


@router.post("", response_model=ConversationObject, summary="Create a conversation")
async def create_conversation(runtime: RuntimeOf, principal: JobsWriter, body: NewConversation) -> Response:
    """Create a conversation with up to 20 items."""
    tenant_id = principal.tenant_id

    def create() -> ConversationObject:
        items, metadata = _items(runtime, tenant_id, body.items or ()), _metadata(runtime, tenant_id, body.metadata)
        return conversation_object(conversations.create(runtime.db, tenant_id, metadata=metadata, items=items))

    return JsonResponse(await runtime.submissions.tenant_threads.run(tenant_id, create))


@router.get("/{conversation_id}", response_model=ConversationObject, summary="Retrieve a conversation")
async def get_conversation(runtime: RuntimeOf, principal: JobsReader, conversation_id: ConversationId) -> Response:
    """Return the conversation without its items."""
    found = await run_in_threadpool(conversations.get, runtime.db, principal.tenant_id, conversation_id)
    return JsonResponse(conversation_object(found))


@router.post("/{conversation_id}", response_model=ConversationObject, summary="Update a conversation")
async def update_conversation(
    runtime: RuntimeOf, principal: JobsWriter, conversation_id: ConversationId, body: ConversationChanges
) -> Response:
    """Replace the metadata."""
    tenant_id = principal.tenant_id

    def update() -> ConversationObject:
        metadata = _metadata(runtime, tenant_id, body.metadata)
        return conversation_object(conversations.set_metadata(runtime.db, tenant_id, conversation_id, metadata))

    return JsonResponse(await runtime.submissions.tenant_threads.run(tenant_id, update))


@router.delete("/{conversation_id}", response_model=Deleted, summary="Delete a conversation")
async def delete_conversation(runtime: RuntimeOf, principal: JobsWriter, conversation_id: ConversationId) -> Response:
    """Delete the conversation and its items. The responses that added to it stay."""
    tenant_id, actor = principal.tenant_id, principal.key_id
    await run_in_threadpool(conversations.delete, runtime.db, tenant_id, conversation_id, actor=actor)
    return JsonResponse(Deleted(id=conversation_id, object="conversation.deleted"))


@router.post("/{conversation_id}/items", response_model=ConversationItemList, summary="Add items to a conversation")
async def add_items(
    runtime: RuntimeOf, principal: JobsWriter, conversation_id: ConversationId, body: NewItems, include: Include = None
) -> Response:
    """Add up to 20 items at the end, and return them."""
    tenant_id = principal.tenant_id

    def add() -> list[Item]:
        items = _items(runtime, tenant_id, body.items)
        settle(runtime.db, tenant_id, conversation_id)
        conversations.add_items(runtime.db, tenant_id, conversation_id, items)
        return items

    items = await runtime.submissions.tenant_threads.run(tenant_id, add)
    return JsonResponse(item_list(items, len(items)))


@router.get("/{conversation_id}/items", response_model=ConversationItemList, summary="List a conversation's items")
async def list_items(
    runtime: RuntimeOf,
    principal: JobsReader,
    conversation_id: ConversationId,
    after: Annotated[str | None, Query(description="`last_id` of the previous page")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    include: Include = None,
) -> Response:
    """Return the items, newest first by default."""
    tenant_id = principal.tenant_id

    def read() -> list[Item]:
        settle(runtime.db, tenant_id, conversation_id)
        return conversations.list_items(
            runtime.db, tenant_id, conversation_id, limit=limit + 1, after=after, descending=order == "desc"
        )

    return JsonResponse(item_list(await run_in_threadpool(read), limit))


@router.get(
    "/{conversation_id}/items/{item_id}", response_model=dict[str, Any], summary="Retrieve an item of a conversation"
)
async def get_item(
    runtime: RuntimeOf,
    principal: JobsReader,
    conversation_id: ConversationId,
    item_id: ItemId,
    include: Include = None,
) -> Response:
    """Return one item."""
    tenant_id = principal.tenant_id

    def read() -> Item:
        settle(runtime.db, tenant_id, conversation_id)
        return conversations.get_item(runtime.db, tenant_id, conversation_id, item_id)

    return ObjectResponse(await run_in_threadpool(read))


@router.delete(
    "/{conversation_id}/items/{item_id}", response_model=ConversationObject, summary="Delete an item of a conversation"
)
async def delete_item(
    runtime: RuntimeOf, principal: JobsWriter, conversation_id: ConversationId, item_id: ItemId
) -> Response:
    """Delete one item from the conversation, and return the conversation. A response that added it keeps it."""
    tenant_id = principal.tenant_id

    def delete() -> ConversationObject:
        settle(runtime.db, tenant_id, conversation_id)
        conversations.delete_item(runtime.db, tenant_id, conversation_id, item_id)
        return conversation_object(conversations.get(runtime.db, tenant_id, conversation_id))

    return JsonResponse(await run_in_threadpool(delete))
