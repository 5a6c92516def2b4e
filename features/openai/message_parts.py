"""Texts and images of a message, put together as a message of ``store.payloads.conversation`` has them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image of a message: the fields of a ``store.payloads.conversation.MessageImage`` but its place."""

    fields: Mapping[str, Any]


def joined(parts: Iterable[str | ImagePart], between: str = "") -> dict[str, Any]:
    """Return the ``content``, and the ``images`` with their places in it if there are any.

    ``between`` stands between two texts; empty texts are left out then.
    """
    content, images = "", []
    for part in parts:
        if isinstance(part, ImagePart):
            images.append(
                {name: value for name, value in part.fields.items() if value is not None} | {"at": len(content)}
            )
        elif part:
            content += (between if content else "") + part
    return {"content": content, **({"images": images} if images else {})}
