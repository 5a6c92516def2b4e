"""The fields that all tasks of encoders share: the cutting of inputs that are too long."""

from typing import Annotated

from pydantic import Field

from headrace.store.payloads.strict_model import Strict

MAX_TOKENS_TOGETHER = 300_000
"""Tokens of all inputs of one request, as in OpenAI's API."""

Truncate = Annotated[bool, Field(description="cut inputs that are longer than the context window at their end")]


class CutInput(Strict):
    """An input that was cut because the request has ``truncate``."""

    index: int = Field(description="the input's place in the request, from 0")
    tokens: int = Field(description="its tokens that the model was not given")


Cuts = Annotated[tuple[CutInput, ...] | None, Field(description="the inputs that were cut; null: none was")]
