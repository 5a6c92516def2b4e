"""What every answer of the API shares: JSON responses, and how times and figures are shown."""

from datetime import datetime
from typing import Any, Literal

import orjson
from pydantic import BaseModel
from starlette.responses import Response


class JsonResponse(Response):
    """A model, serialised by pydantic itself."""

    media_type = "application/json"

    def render(self, content: BaseModel) -> bytes:
        """Return the model as JSON."""
        return content.model_dump_json().encode()


class ObjectResponse(Response):
    """A plain object, as JSON."""

    media_type = "application/json"

    def render(self, content: dict[str, Any]) -> bytes:
        """Return the object as JSON."""
        return orjson.dumps(content)


def seconds(at: datetime | None) -> int | None:
    """Return Unix seconds, null where there is no time."""
    return None if at is None else int(at.timestamp())


def rounded(value: float | None) -> float | None:
    """Return milliseconds or a rate with three decimal places, null where there is no value."""
    return None if value is None else round(value, 3)


class Deleted(BaseModel):
    """The deleted object."""

    id: str
    object: str
    deleted: Literal[True] = True
