"""Requests for pictures: the size, steps and seed that the model's version fills in, and the header of a picture."""

import secrets
from collections.abc import Callable
from typing import Any

from headrace.features.diffusion.pictures import (
    MAX_PICTURES,
    MAX_PIXELS,
    MAX_SEED,
    PictureOrder,
    size_of,
)
from headrace.features.files import files
from headrace.features.files.blob_storage import open_blobs, read_blocks
from headrace.prompts.tasks.own_task import num_tokens_of
from headrace.prompts.tasks.task_inputs import InputModel, Prepared
from headrace.prompts.vision.image_sources import content_of
from headrace.prompts.vision.pictures import check_header
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.payloads.conversation import MAX_IMAGE_BYTES, Image
from headrace.store.payloads.job_payload import JobOrder, PinnedPolicy
from headrace.store.settings import Settings
from headrace.store.tasks.own_task import OwnTaskSpec


def filled(order: PictureOrder, model: InputModel) -> PictureOrder:
    """Return the order with size, steps and seed. Raises InvalidRequest for a size that the model cannot make."""
    facts = model.settings
    asked = size_of(order.size)
    width, height = asked or _fitting(getattr(order, "picture_size", None), facts)
    if width % facts.multiple or height % facts.multiple:
        near = "x".join(str(max(1, round(one / facts.multiple)) * facts.multiple) for one in (width, height))
        raise InvalidRequest(
            f"the size {width}x{height} is not possible: the model needs multiples of {facts.multiple}, such as {near}",
            param="input.size",
        )
    if width * height > MAX_PIXELS:
        raise InvalidRequest(
            f"a picture of {width}x{height} has {width * height} pixels, and {MAX_PIXELS} are made at most",
            param="input.size",
        )
    defaults = facts.defaults
    return order.model_copy(
        update={
            "size": f"{width}x{height}",
            "steps": order.steps or defaults.steps,
            "guidance": defaults.guidance if order.guidance is None else order.guidance,
            "negative_prompt": order.negative_prompt or defaults.negative_prompt,
            "seed": secrets.randbelow(MAX_SEED - MAX_PICTURES) if order.seed is None else order.seed,
        }
    )


def _fitting(size: tuple[int, int] | None, facts: Any) -> tuple[int, int]:
    """Return the size for a picture that is changed: its own, rounded, and not larger than the model's by area."""
    if size is None:
        return facts.width, facts.height
    shrink = min(1.0, (facts.width * facts.height / (size[0] * size[1])) ** 0.5)
    width, height = (max(1, int(one * shrink) // facts.multiple) * facts.multiple for one in size)
    return width, height


def preparing(spec: OwnTaskSpec) -> Callable[[JobOrder, InputModel, PinnedPolicy | None], Prepared]:
    """Return how requests of a task become payloads and costs."""

    def prepare(request: JobOrder, model: InputModel, policy: PinnedPolicy | None) -> Prepared:
        order: Any = filled(request.input, model)  # type: ignore[arg-type]
        return Prepared(spec.payload(input=order, policy=policy), num_tokens_of(spec, order))

    return prepare


def with_pictures(request: JobOrder, tenant_id: str, settings: Settings, db: Database) -> JobOrder:
    """Return the request with the size of its picture. Headers alone are read. Blocks.

    Raises InvalidRequest, NotFound, Unavailable.
    """
    order: Any = request.input
    if order.picture_size is not None:
        return request
    size = check_header(_content(order.images[0], "input.images[0]", tenant_id, settings, db), "input.images[0]")
    if order.mask is not None:
        other = check_header(_content(order.mask, "input.mask", tenant_id, settings, db), "input.mask")
        if other != size:
            raise InvalidRequest(
                f"the mask has {other[0]} x {other[1]} pixels, the picture {size[0]} x {size[1]}: they must be equal",
                code="invalid_image",
                param="input.mask",
            )
    return request.model_copy(update={"input": order.with_size(size)})


def _content(image: Image, param: str, tenant_id: str, settings: Settings, db: Database) -> bytes:
    if (content := content_of(image, param)) is not None:
        return content
    if image.file_id is None:
        raise InvalidRequest("send the picture itself, or the id of an uploaded file: URLs are not read", param=param)
    try:
        file = files.get(db, tenant_id, image.file_id)
    except NotFound as error:
        error.param = param
        raise
    if file.num_bytes > MAX_IMAGE_BYTES:
        raise InvalidRequest(f"the file {file.id} has {file.num_bytes} bytes: at most {MAX_IMAGE_BYTES}", param=param)
    return b"".join(read_blocks(open_blobs(settings, db.seal), file.digest))
