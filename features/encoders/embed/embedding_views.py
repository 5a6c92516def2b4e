"""Response models of embeddings in OpenAI's format."""

from typing import Literal

from pydantic import BaseModel, Field

from headrace.features.encoders.encoder_fields import CutInput
from headrace.store.payloads.conversation import FailedImage


class EmbeddingObject(BaseModel):
    """The vector of one input: numbers, or base64 of little-endian float32 with `encoding_format` base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """One vector per input, in order. `truncated` is there if inputs were cut."""

    object: Literal["list"] = "list"
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingUsage
    truncated: list[CutInput] | None = Field(None, description="with `truncate`: the inputs that were cut")
    failed: list[FailedImage] | None = Field(None, description="the images that could not be read; absent if all could")
