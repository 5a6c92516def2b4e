"""Images of jobs from files and servers: what cannot be read fails alone, with the reason, and nothing else."""

from collections.abc import Iterator

import pytest

from headrace.features.encoders.image_reader import ImageReader
from headrace.features.files import files
from headrace.features.files.blob_storage import FolderBlobs
from headrace.store.calls.ssrf_guard import GuardedClient
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import MAX_IMAGE_BYTES, Image
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.models.runners.tiny_images import data_url, encoded, picture
from tests.workers.receiver import Answer, Receiver

GOOD = encoded(picture(1))
TEXT = b"no image"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def opened(settings: Settings) -> Settings:
    return Settings(home=settings.home, webhook_allow_http=True, webhook_allow_networks=("127.0.0.0/8",))


def reader(settings: Settings) -> ImageReader:
    return ImageReader(lambda found: found.size, settings, client=GuardedClient(settings))


def upload(db: Database, blobs: FolderBlobs, tenant_id: str, content: bytes) -> Image:
    draft = blobs.create()
    draft.write(content)
    purpose = files.Purpose.VISION
    made = files.create(db, tenant_id, draft, filename="a.png", purpose=purpose, most_bytes=1 << 40)
    return Image(file_id=made.id)


def test_one_image_fails_alone_with_the_reason(db: Database, settings: Settings, receiver: Receiver) -> None:
    blobs = FolderBlobs(settings.home / "files")
    mine, other = api_keys.create_tenant(db, "acme"), api_keys.create_tenant(db, "other")
    answers = {
        "/good": Answer(200, body=GOOD),
        "/text": Answer(200, body=TEXT),
        "/moved": Answer(302, {"location": receiver.url("/good")}),
        "/endless": Answer(200, endless=True),
    }
    receiver.answer = lambda call: answers.get(call.path, Answer())
    wanted: list[tuple[Image, str]] = [
        (Image(url=data_url(GOOD)), ""),
        (upload(db, blobs, mine, GOOD), ""),
        (Image(url=receiver.url("/good")), ""),
        (upload(db, blobs, mine, TEXT), "is no PNG"),
        (upload(db, blobs, other, GOOD), "does not exist"),
        (Image(file_id="file-unknown"), "does not exist"),
        (upload(db, blobs, mine, GOOD + bytes(MAX_IMAGE_BYTES)), "bytes"),
        (Image(url=receiver.url("/text")), "is no PNG"),
        (Image(url=receiver.url("/moved")), "answered 302"),
        (Image(url=receiver.url("/endless")), f"more than {MAX_IMAGE_BYTES} bytes"),
        (Image(url=receiver.url("/absent")), "answered 204"),
        (Image(url="http://10.0.0.1/x.png"), "not public"),
    ]
    found = reader(opened(settings)).of_job(db, mine, [image for image, _ in wanted])
    assert found.places == (0, 1, 2)
    assert found.pixels == (picture(1).size,) * 3
    assert [one.index for one in found.failed] == list(range(3, len(wanted)))
    for one in found.failed:
        assert wanted[one.index][1] in one.message, one
        assert one.code == ("invalid_image" if "no PNG" in one.message else "image_unavailable")


def test_a_job_without_a_readable_image_fails(db: Database, settings: Settings, receiver: Receiver) -> None:
    closed = Settings(webhook_allow_http=True)
    read = reader(closed)
    with pytest.raises(InvalidRequest, match="not public") as caught:
        read.of_job(db, api_keys.create_tenant(db, "acme"), [Image(url=receiver.url("/good"))])
    assert caught.value.code == "image_unavailable"
    assert receiver.calls == []
