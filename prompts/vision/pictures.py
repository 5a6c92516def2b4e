"""Files of images: the media type by the content, the bounds, and the pixels. The one place that uses Pillow.

The bounds are checked by the header, before a decoder reserves memory for the pixels. The API checks headers alone: a
file of a kilobyte may have 25 million pixels, which take a second of CPU time and 100 MB. A worker decodes.
"""

import struct
from io import BytesIO
from typing import Any, Final, TypeAlias

from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")

Picture: TypeAlias = Any
"""A decoded image, RGB, upright: a ``PIL.Image.Image``."""

_BEGINNINGS: Final = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg", b"GIF8": "image/gif"}
_WEBP_HEADER = 30
_MOST_SEGMENTS = 1000
"""Of a JPEG file before its size. Cameras write some tens, of up to 64 KB; a file may have millions of empty ones."""

_SIZES_OF_JPEG = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_CONTENT = frozenset((0x01, *range(0xD0, 0xD8)))
_SCAN, _END = 0xDA, 0xD9


def check_header(content: bytes, param: str) -> tuple[int, int]:
    """Raise InvalidRequest (code ``invalid_image``) that names ``param`` for a file that is no PNG, JPEG, WebP or GIF
    file by its header, and for one over the bounds.

    Returns width and height, not upright. Nothing is decoded. A file that is damaged or cut off behind its header is
    refused by ``read_picture`` alone.
    """
    if len(content) > MAX_IMAGE_BYTES:
        raise refused(param, f"has {len(content)} bytes, and {MAX_IMAGE_BYTES} are accepted: send a smaller image")
    try:
        size = _size_of(content)
    except (struct.error, IndexError):
        raise refused(param, "is damaged or cut off (its header has no size): send the whole file") from None
    if size is None:
        raise refused(param, "is no PNG, JPEG, WebP or GIF file: send one of these")
    _check_size(size, param)
    return size


def read_picture(content: bytes, param: str, mode: str = "RGB") -> Picture:
    """Return the pixels of a PNG, JPEG or WebP file, or of the first frame of a GIF file, upright and in RGB (or RGBA).

    Raises InvalidRequest as ``check_header``, and for a file that is damaged or cut off. Up to a second and 200 MB: a
    worker calls it, the API never.
    """
    check_header(content, param)
    # A process that never decodes an image does not load it.
    from PIL import Image, ImageOps, UnidentifiedImageError  # noqa: PLC0415 - see above

    Image.MAX_IMAGE_PIXELS = None  # Pillow's own bound is above the one here, and warns only
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as picture:
            _check_size(picture.size, param)
            picture.load()
            return ImageOps.exif_transpose(picture).convert(mode)
    except InvalidRequest:
        raise
    except UnidentifiedImageError:
        raise refused(param, "is no PNG, JPEG, WebP or GIF file: send one of these") from None
    except Exception as error:  # noqa: BLE001 - decoders raise errors of any type for damaged files
        raise refused(param, f"is damaged or cut off ({type(error).__name__}): send the whole file") from None


def picture_of(width: int, height: int, rgb: bytes) -> Picture:
    """Return a picture of these pixels, row by row, each with a byte of red, green and blue."""
    from PIL import Image  # noqa: PLC0415 - as in ``read_picture``

    return Image.frombytes("RGB", (width, height), rgb)


def written(picture: Picture, kind: str, quality: int | None = None) -> bytes:
    """Return a picture as a ``png``, ``jpeg`` or ``webp`` file. ``quality``: from 1 to 100, 95 by default."""
    out = BytesIO()
    picture.save(out, kind.upper(), **({} if kind == "png" else {"quality": quality or 95}))
    return out.getvalue()


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


def _size_of(content: bytes) -> tuple[int, int] | None:
    """Return width and height by the header; None for a file of another kind. Raises IndexError, struct.error."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _pair(">II", content, 16)
    if content.startswith((b"GIF87a", b"GIF89a")):
        return _pair("<HH", content, 6)
    if content.startswith(b"\xff\xd8\xff"):
        return _jpeg_size(content)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp_size(content)
    return None


def _pair(form: str, content: bytes, at: int) -> tuple[int, int]:
    first, second = struct.unpack_from(form, content, at)
    return first, second


def _jpeg_size(content: bytes) -> tuple[int, int]:
    """Return the size in the first frame header, which stands behind segments of any other content."""
    at = 2
    for _ in range(_MOST_SEGMENTS):
        at = content.find(b"\xff", at) + 1
        if not at:
            break
        kind = content[at]
        if kind in (_SCAN, _END):
            break
        if kind in _SIZES_OF_JPEG:
            height, width = _pair(">HH", content, at + 4)
            return width, height
        # 0xFF fills, and 0 is no marker: both are passed over, one step each.
        has_content = kind not in (0x00, 0xFF) and kind not in _WITHOUT_CONTENT
        at += 1 + int.from_bytes(content[at + 1 : at + 3]) if has_content else int(kind != 0xFF)
    raise IndexError("no frame header")


def _webp_size(content: bytes) -> tuple[int, int]:
    """Return the size in the header of a WebP file: Pillow reserves memory for its pixels when it opens one."""
    head = content[:_WEBP_HEADER]
    if len(head) < _WEBP_HEADER:
        raise IndexError("no header")
    kind = head[12:16]
    if kind == b"VP8X":
        return _number(head[24:27]) + 1, _number(head[27:30]) + 1
    if kind == b"VP8L":
        bits = _number(head[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return _number(head[26:28]) & 0x3FFF, _number(head[28:30]) & 0x3FFF


def _number(digits: bytes) -> int:
    return int.from_bytes(digits, "little")
