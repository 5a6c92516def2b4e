"""The multipart form of a transcription: its fields as those of a JSON body."""

import re
from collections.abc import Mapping
from typing import Any

from headrace.store.errors import InvalidRequest

_NESTED = re.compile(r"(metadata|job)\[([^\[\]]{1,64})\]")
_FIELDS: dict[str, dict[str, Any]] = {
    "file": {"type": "string", "format": "binary", "description": "the audio: WAV, FLAC, OGG or MP3"},
    "model": {"type": "string", "description": "which model: `name`, `name@alias` or `name@3`"},
    "language": {"type": "string", "description": "ISO 639-1 code, such as `en`; without it the model detects it"},
    "response_format": {
        "type": "string",
        "enum": ["json", "text", "srt", "verbose_json", "vtt"],
        "description": "the shape of the answer, json by default",
    },
    "stream": {"type": "boolean", "description": "send the text as events, as it is transcribed"},
    "temperature": {"type": "number", "enum": [0], "description": "0: the likeliest text is the answer"},
    "timestamp_granularities[]": {
        "type": "array",
        "items": {"type": "string", "enum": ["segment"]},
        "description": "what verbose_json has times of",
    },
    "chunking_strategy": {"type": "string", "enum": ["auto"], "description": "the audio is cut at silences"},
    "user": {"type": "string", "description": "your own user, for whom the usage is counted"},
    "service_tier": {
        "type": "string",
        "enum": ["auto", "default", "priority", "flex"],
        "description": "auto and priority go first, default next, flex last",
    },
}
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file", "model"], "properties": _FIELDS},
                "example": {"file": "(the bytes of speech.wav)", "model": "whisper", "response_format": "json"},
            }
        },
    }
}
"""For OpenAPI."""


def fields_of(form: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a form as those of a JSON body. Raises InvalidRequest.

    ``name[]`` is a list, ``metadata[key]`` and ``job[name]`` are fields of an object.
    """
    found: dict[str, Any] = {}
    for name, value in form.items():
        nested = _NESTED.fullmatch(name)
        if name == "file_id":
            raise InvalidRequest("send the audio itself in the field `file`", param="file_id")
        if nested is not None:
            inner = int(value) if nested[1] == "job" and re.fullmatch(r"\d{1,12}", value) else value
            found.setdefault(nested[1], {})[nested[2]] = inner
        elif name.endswith("[]"):
            found[name.removesuffix("[]")] = value.split(",")
        elif value:
            found[name] = value
    return found
