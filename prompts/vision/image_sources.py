"""Images of a request: the headers of those that it brings are checked before it is stored. The worker decodes them."""

import binascii
from base64 import b64decode
from collections.abc import Sequence

from headrace.prompts.vision.pictures import check_header, refused
from headrace.store.payloads.conversation import Image


def check_images(images: Sequence[Image], param: str = "input.images") -> None:
    """Raise InvalidRequest (code ``invalid_image``) that names the first image whose header is refused.

    An image that is a file or the URL of a server is checked by the worker, which reads it. So are all pixels.
    """
    for index, image in enumerate(images):
        check_image(image, f"{param}[{index}]")


def check_image(image: Image, param: str) -> None:
    """Raise InvalidRequest (code ``invalid_image``) for a data URL with an image whose header is refused."""
    if (content := content_of(image, param)) is not None:
        check_header(content, param)


def content_of(image: Image, param: str) -> bytes | None:
    """Return the bytes of a data URL; None for an image that must be read elsewhere.

    Raises InvalidRequest (code ``invalid_image``) for a malformed data URL.
    """
    if image.data_url is None:
        return None
    head, comma, data = image.data_url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise refused(param, "is a malformed data URL: send `data:image/png;base64,` and the file as base64")
    try:
        return b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise refused(param, "is a data URL with malformed base64: encode the whole file") from None
