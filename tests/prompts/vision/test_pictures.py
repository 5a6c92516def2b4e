"""What of a file is an image: the kinds, the bounds before decoding, and damaged files. No model."""

import io
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from headrace.prompts.vision.image_sources import check_images
from headrace.prompts.vision.pictures import check_header, media_type, read_picture
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from headrace.store.payloads.conversation import Image as ImageInput
from tests.models.runners.tiny_images import data_url, encoded, picture
from tests.refusals import Naming

ORIENTATION = 0x0112
PICTURE = picture(1)
WIDE = Image.new("1", (8192, MAX_IMAGE_PIXELS // 8192 + 1))
KINDS: dict[str, bytes] = {
    "PNG": encoded(PICTURE),
    "JPEG": encoded(PICTURE, "JPEG"),
    "WEBP": encoded(PICTURE, "WEBP", lossless=True),
    "GIF": encoded(PICTURE, "GIF", save_all=True, append_images=[picture(2)]),
}


def _png_that_says(width: int, height: int) -> bytes:
    """A PNG file whose header has this size; the pixels are those of a small picture."""
    header = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4) + header + zlib.crc32(header).to_bytes(4) + KINDS["PNG"][33:]


def _webp_that_says(width: int, height: int) -> bytes:
    """The header of a WebP file with this canvas."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + (1000).to_bytes(4, "little") + b"WEBPVP8X" + (10).to_bytes(4, "little") + bytes(4) + size


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "is no PNG"),
    "text": (lambda: b"a text that is named mill.png", "is no PNG"),
    "a drawing": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "is no PNG"),
    "another kind": (lambda: encoded(PICTURE, "BMP"), "is no PNG"),
    "another kind with the type of TIFF": (lambda: encoded(PICTURE, "TIFF"), "is no PNG"),
    "too many bytes": (
        lambda: KINDS["PNG"] + bytes(MAX_IMAGE_BYTES),
        f"has {MAX_IMAGE_BYTES + len(KINDS['PNG'])} bytes",
    ),
    "too many pixels": (lambda: encoded(WIDE), "pixels"),
    "a JPEG file of segments without an end": (
        lambda: b"\xff\xd8" + b"\xff\xe1\x00\x02" * (MAX_IMAGE_BYTES // 4 - 1),
        "is damaged or cut off",
    ),
    "a JPEG file of filling": (lambda: b"\xff\xd8" + b"\xff" * (MAX_IMAGE_BYTES - 2), "is damaged or cut off"),
    "a header that says many pixels": (lambda: _png_that_says(100_000, 100_000), "has 100000 x 100000 pixels"),
    "a large canvas": (lambda: _webp_that_says(16_383, 16_383), "has 16383 x 16383 pixels"),
    **{
        f"{kind}, cut off in its header": (lambda content=content, end=end: content[:end], "is damaged or cut off")
        for kind, content, end in zip(KINDS, KINDS.values(), (20, 20, 20, 8), strict=True)
    },
}
DAMAGED = {
    **{f"{kind}, cut off": content[: len(content) // 4] for kind, content in KINDS.items()},
    "JPEG without its last bytes": KINDS["JPEG"][:-40],
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_frame_of_each_kind_is_read_whatever_type_is_named(kind: str) -> None:
    found = read_picture(KINDS[kind], "image")
    assert (found.size, found.mode) == (PICTURE.size, "RGB")
    apart = np.abs(np.asarray(found, np.int16) - np.asarray(PICTURE, np.int16)).mean()
    assert apart < {"JPEG": 45, "GIF": 45}.get(kind, 0.001)
    check_images([ImageInput(url=data_url(KINDS[kind]))])


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("look", [check_header, read_picture])
def test_what_is_no_image_within_the_bounds_by_its_header_is_refused(
    name: str, look: Callable[[bytes, str], object]
) -> None:
    make, words = REFUSED[name]
    with pytest.raises(InvalidRequest) as caught:
        look(make(), "images[3]")
    assert (caught.value.code, caught.value.param) == ("invalid_image", "images[3]")
    assert caught.value.message.startswith("`images[3]` ")
    assert words in caught.value.message


@pytest.mark.parametrize("name", DAMAGED)
def test_pixels_are_looked_at_by_the_worker_alone(name: str) -> None:
    check_images([ImageInput(url=data_url(DAMAGED[name]))])
    with pytest.raises(InvalidRequest) as caught:
        read_picture(DAMAGED[name], "images[3]")
    assert (caught.value.code, caught.value.param) == ("invalid_image", "images[3]")


@pytest.mark.parametrize("url", ["data:image/png,abc", "data:image/png;base64", "data:;base64,%%%", "DATA:;base64,YQ="])
def test_a_malformed_data_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="data URL"):
        check_images([ImageInput(url=url)], "images")


def test_a_data_url_is_one_in_any_case_and_its_fault_is_named() -> None:
    check_images([ImageInput(url=data_url(KINDS["PNG"]).replace(";base64", ";BASE64")), ImageInput(file_id="f")])
    form = "`data:image/png;base64,`"
    digits = "malformed base64"
    for url, said in (("data:image/png,abc", form), ("data:;base64", form), ("data:;base64,YQ", digits)):
        with pytest.raises(InvalidRequest) as refused:
            check_images([ImageInput(file_id="f"), ImageInput(url=url)], "images")
        assert (refused.value.message, refused.value.param) == (Naming("`images[1]` ", said), "images[1]")


def test_a_picture_is_turned_as_its_file_says() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    found = read_picture(encoded(PICTURE, "JPEG", exif=exif), "image")
    assert found.size == PICTURE.size[::-1]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 50}),
        ("WEBP", {"quality": 50, "exif": b"Exif\0\0II*\0"}),
        ("PNG", {}),
        ("GIF", {}),
        ("JPEG", {"progressive": True, "icc_profile": bytes(200_000)}),
        ("JPEG", {"exif": b"Exif\0\0II*\0", "comment": b"\xff\xc0 a mill"}),
    ],
)
def test_a_bound_is_of_the_size_in_the_header(
    monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, object]
) -> None:
    content = encoded(picture(3, (300, 77)), kind, **options)
    assert Image.open(io.BytesIO(content)).size == (300, 77)
    check_header(content, "image")
    monkeypatch.setattr("headrace.prompts.vision.pictures.MAX_IMAGE_PIXELS", 300 * 77 - 1)
    with pytest.raises(InvalidRequest, match="has 300 x 77 pixels"):
        check_header(content, "image")


def test_the_media_type_is_that_of_the_content() -> None:
    assert [media_type(content) for content in KINDS.values()] == [f"image/{kind.lower()}" for kind in KINDS]
