"""Reads the images of a job and prepares them for the model. One that cannot be read harms no other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from headrace.features.encoders.image_rows import PrepareImage
from headrace.prompts.vision.image_sources import content_of
from headrace.prompts.vision.pictures import read_picture
from headrace.store.calls.ssrf_guard import GuardedClient
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import FailedImage, Image
from headrace.store.settings import Settings
from headrace.workers.images.image_source import ImageSource, deadline


@dataclass(frozen=True, slots=True)
class ReadImages:
    """The images that could be read, prepared for the model, with their places in the request; and the others."""

    pixels: tuple[Any, ...]
    places: tuple[int, ...]
    failed: tuple[FailedImage, ...]

    @property
    def failures(self) -> tuple[FailedImage, ...] | None:
        """The images that could not be read, for the output; None if all could."""
        return self.failed or None


ReadAll: TypeAlias = Callable[[Sequence[Image]], ReadImages]
"""Raises InvalidRequest if no image can be read."""


class ImageReader:
    """Reads images for one model. Called from many threads at once."""

    def __init__(
        self,
        prepare: PrepareImage,
        settings: Settings,
        *,
        client: GuardedClient | None = None,
    ) -> None:
        self._prepare = prepare
        self._source = ImageSource(settings, client=client)

    def of_payload(self, images: Sequence[Image]) -> ReadImages:
        """Return images that the payload itself has."""
        return self._read(images, lambda _image, _until: b"")

    def of_job(self, db: Database, tenant_id: str, images: Sequence[Image]) -> ReadImages:
        """Return the images of a tenant's job. Raises InvalidRequest if none can be read; Unavailable."""

        return self._read(images, partial(self._source.read, db, tenant_id))

    def _read(self, images: Sequence[Image], fetch: Callable[[Image, float], bytes]) -> ReadImages:
        until = deadline()
        pixels, places, failed = [], [], []
        for index, image in enumerate(images):
            param = f"input.images[{index}]"
            try:
                content = content_of(image, param)
                content = fetch(image, until) if content is None else content
                pixels.append(self._prepare(read_picture(content, param)))
                places.append(index)
            except InvalidRequest as error:
                failed.append(FailedImage(index=index, code=error.code, message=error.message))
        if not pixels:
            raise InvalidRequest(failed[0].message, code=failed[0].code)
        return ReadImages(tuple(pixels), tuple(places), tuple(failed))
