"""Files of images: the media type by the content, the bounds, and the pixels. The one place that uses Pillow.

The bounds are checked by the header, before a decoder reserves memory for the pixels.
"""

from io import BytesIO
from typing import Any, Final, TypeAlias

from store.errors import InvalidRequest
from store.payloads.image_input import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")

Picture: TypeAlias = Any
"""A decoded image, RGB, upright: a ``PIL.Image.Image``."""

_BEGINNINGS: Final = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg", b"GIF8": "image/gif"}
_WEBP_HEADER = 30


def read_picture(content: bytes, param: str, *, is_trial: bool = False) -> Picture:
    """Return the pixels of a PNG, JPEG or WebP file, or of the first frame of a GIF file, upright and in RGB.

    ``is_trial``: the pixels are not used, so a JPEG file is decoded in a smaller size, which takes less time.
    Raises InvalidRequest (code ``invalid_image``) that names ``param`` for any other file, one that is damaged or cut
    off, and one over the bounds.
    """
    if len(content) > MAX_IMAGE_BYTES:
        raise refused(param, f"has {len(content)} bytes, and {MAX_IMAGE_BYTES} are accepted: send a smaller image")
    _check_size(_webp_size(content), param)
    # A process that never gets an image does not load it.
    from PIL import Image, ImageOps, UnidentifiedImageError  # noqa: PLC0415 - see above

    Image.MAX_IMAGE_PIXELS = None  # Pillow's own bound is above the one here, and warns only
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as picture:
            _check_size(picture.size, param)
            if is_trial:
                picture.draft("RGB", (1, 1))
            picture.load()
            return ImageOps.exif_transpose(picture).convert("RGB")
    except InvalidRequest:
        raise
    except UnidentifiedImageError:
        raise refused(param, "is no PNG, JPEG, WebP or GIF file: send one of these") from None
    except Exception as error:  # noqa: BLE001 - decoders raise errors of any type for damaged files
        raise refused(param, f"is damaged or cut off ({type(error).__name__}): send the whole file") from None


def media_type(content: bytes) -> str:
    """Return the media type of an image that ``read_picture`` reads, by its first bytes."""
    found = (kind for beginning, kind in _BEGINNINGS.items() if content.startswith(beginning))
    return next(found, "image/webp")


def refused(param: str, why: str) -> InvalidRequest:
    """Return the error for an image that cannot be used."""
    return InvalidRequest(f"`{param}` {why}", code="invalid_image", param=param)


def _check_size(size: tuple[int, int], param: str) -> None:
    width, height = size
    if width * height > MAX_IMAGE_PIXELS:
        raise refused(
            param,
            f"has {width} x {height} pixels, and {MAX_IMAGE_PIXELS} are accepted together: send a smaller image",
        )


def _webp_size(content: bytes) -> tuple[int, int]:
    """Return the size in the header of a WebP file: Pillow reserves memory for its pixels when it opens one.

    Any other file has the size 0 here.
    """
    head = content[:_WEBP_HEADER]
    if len(head) < _WEBP_HEADER or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return 0, 0
    kind = head[12:16]
    if kind == b"VP8X":
        return _number(head[24:27]) + 1, _number(head[27:30]) + 1
    if kind == b"VP8L":
        bits = _number(head[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return _number(head[26:28]) & 0x3FFF, _number(head[28:30]) & 0x3FFF


def _number(digits: bytes) -> int:
    return int.from_bytes(digits, "little")
