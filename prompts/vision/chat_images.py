"""Images in the messages of a conversation: which versions take them, and how many tokens they are taken to be."""

from typing import Any, Final

from headrace.prompts.vision.image_sources import check_images
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import MESSAGE_IMAGES, images_of
from headrace.store.tasks.generate import GenerateInput

TOKENS: Final = 576
"""An image is taken to be so many tokens, as in LLaVA 1.5 with its 24 x 24 patches. Only the server knows."""

LOW_TOKENS: Final = 85
"""With `detail` `low`, as in OpenAI's models."""


def check_message_images(source: GenerateInput, settings: Any) -> None:
    """Raise InvalidRequest if the version takes no images, or an image that the request brings cannot be used.

    ``settings``: of the version's task, a ``ChatServer`` for a version that may take images.
    """
    images = images_of(source)
    if not images:
        return
    if not getattr(settings, "takes_images", False):
        raise no_images("this model takes no images")
    check_images(images, MESSAGE_IMAGES)


def no_images(why: str) -> InvalidRequest:
    """Return the error for images in a conversation with a model that takes none."""
    return InvalidRequest(why, code="unsupported_parameter", param="input.messages")


def image_tokens(source: GenerateInput) -> int:
    """Return the estimate for all images of a conversation."""
    return sum(LOW_TOKENS if getattr(one, "detail", None) == "low" else TOKENS for one in images_of(source))
