"""Pictures of a conversation as an inference server gets them: all as data URLs, whatever they came as.

A picture that cannot be read fails the job: an answer without it would be the answer to another question.
"""

from base64 import b64encode
from collections.abc import Sequence
from typing import Final

from headrace.prompts.vision.image_sources import content_of
from headrace.prompts.vision.pictures import media_type, read_picture
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import MESSAGE_IMAGES, Image
from headrace.workers.images.image_source import ImageSource, deadline

MAX_ALL_BYTES: Final = 32 << 20
"""Bytes of all pictures of one request to a server: a worker holds those of many requests in memory."""


class ChatPictures:
    """Reads the pictures of conversations. Called from many threads at once."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source

    def data_urls(self, db: Database, tenant_id: str, images: Sequence[Image]) -> list[str]:
        """Return each image as a data URL with its media type and the bytes as they were sent.

        Raises InvalidRequest (code ``invalid_image`` or ``image_unavailable``) for the first that cannot be read, and
        Unavailable.
        """
        until, made, num_bytes = deadline(), [], 0
        for index, image in enumerate(images):
            param = f"{MESSAGE_IMAGES}[{index}]"
            content = content_of(image, param)
            if content is None:
                content = self._source.read(db, tenant_id, image, until)
            read_picture(content, param)
            num_bytes += len(content)
            if num_bytes > MAX_ALL_BYTES:
                raise InvalidRequest(
                    f"the images have more than {MAX_ALL_BYTES} bytes together: send fewer or smaller ones",
                    code="invalid_image",
                )
            made.append(f"data:{media_type(content)};base64,{b64encode(content).decode()}")
        return made
