"""Requests for pictures: the size, steps and seed that the model's version fills in, and the header of a picture."""

from typing import Any

from headrace.features.diffusion.order_inputs import left_out
from headrace.features.diffusion.pictures import PictureOrder, size_of
from headrace.features.files import files
from headrace.features.files.blob_storage import open_blobs, read_blocks
from headrace.prompts.tasks.task_inputs import InputModel
from headrace.prompts.vision.image_sources import content_of
from headrace.prompts.vision.pictures import check_header
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.payloads.conversation import MAX_IMAGE_BYTES, Image
from headrace.store.payloads.job_payload import JobOrder
from headrace.store.settings import Settings


def filled(order: PictureOrder, model: InputModel) -> PictureOrder:
    """Return the order with size, steps and seed. Raises InvalidRequest for a size that the model cannot make."""
    facts = model.settings
    size = size_of(order.size) or _fitting(getattr(order, "picture_size", None), facts)
    return order.model_copy(update=left_out(order, facts, size))


def _fitting(size: tuple[int, int] | None, facts: Any) -> tuple[int, int]:
    """Return the size for a picture that is changed: its own, rounded, and not larger than the model's by area."""
    if size is None:
        return facts.width, facts.height
    shrink = min(1.0, (facts.width * facts.height / (size[0] * size[1])) ** 0.5)
    width, height = (max(1, int(one * shrink) // facts.multiple) * facts.multiple for one in size)
    return width, height


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
