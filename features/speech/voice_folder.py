"""What a voice is, as its folder says: a model that a worker runs, or an external server of speech."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from headrace.features.speech.task import VoiceName
from headrace.store.errors import ModelLoadError
from headrace.store.payloads.strict_model import Strict

Rate = Annotated[int, Field(ge=8000, le=48_000)]


class KokoroConfig(Strict):
    """The ``config.json`` of a folder with Kokoro, beside ``model.onnx`` and ``voices.safetensors``.

    ``vocab``: the number of each phoneme.
    """

    model_type: Literal["kokoro"]
    voices: Annotated[tuple[VoiceName, ...], Field(min_length=1, max_length=1000)]
    sample_rate: Rate = 24_000
    vocab: dict[str, int]


class ServerConfig(Strict):
    """The ``config.json`` of a folder that names a server with OpenAI's ``/v1/audio/speech``. It has no other file.

    ``url``: its address, without ``/v1``. ``model``: the model's name there.
    """

    model_type: Literal["speech-server"]
    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s?#@]+$", max_length=500)]
    model: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    voices: Annotated[tuple[VoiceName, ...], Field(min_length=1, max_length=1000)]
    sample_rate: Rate = 24_000


_CONFIG: TypeAdapter[KokoroConfig | ServerConfig] = TypeAdapter(
    Annotated[KokoroConfig | ServerConfig, Field(discriminator="model_type")]
)


@dataclass(frozen=True, slots=True)
class VoiceSettings:
    """Facts of a version: its voices, the first one the default, and samples a second."""

    voices: Sequence[str]
    rate: int


FAKE: Final = VoiceSettings(("low", "high"), 24_000)
"""Of the voice without weights."""


def is_voice(config: Mapping[str, Any]) -> bool:
    """Return True if this ``config.json`` is of a voice."""
    return config.get("model_type") in ("kokoro", "speech-server")


def read_voice(content: bytes) -> KokoroConfig | ServerConfig:
    """Return a ``config.json``. Raises ModelLoadError."""
    try:
        return _CONFIG.validate_python(orjson.loads(content))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ModelLoadError(f"config.json: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except orjson.JSONDecodeError as error:
        raise ModelLoadError(f"config.json cannot be read: {error}") from None
