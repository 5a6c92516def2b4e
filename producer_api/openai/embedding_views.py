"""Embeddings, as OpenAI shows them."""

from typing import Literal

from pydantic import BaseModel


class EmbeddingObject(BaseModel):
    """One input's vector: numbers, or with `encoding_format` base64 their little-endian float32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """What the vectors cost."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """A vector for each input, in the inputs' order."""

    object: Literal["list"] = "list"
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingUsage
