"""Requests for a model behind a server of chat completions: a conversation goes out, text comes back.

Such a server has the tokenizer, the chat template and the parser of tool calls. Its API has no field for some
parameters; a request with one is refused, because leaving the parameter out would change the answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeAlias

from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import ChatMessage
from headrace.store.payloads.sampling_params import GrammarKind, Sampling
from headrace.store.tasks.generate import GenerateInput, ToolStyle

ChatFields: TypeAlias = Callable[[str, GenerateInput], dict[str, object]]
"""Returns the fields of a chat completion for the input of a tenant's job. Raises InvalidRequest, Unavailable."""

CALL_STYLE = ToolStyle.HERMES
"""How ``models.external.openai_chat`` writes the server's tool calls into the text of an answer."""


@dataclass(frozen=True, slots=True)
class ChatServer:
    """What a version behind such a server says of it. The task's settings of such a version; those of others are None.

    ``takes_images``: messages may have images.
    """

    takes_images: bool


_NO_FIELD = {
    "top_k": (0,),
    "repetition_penalty": (1.0,),
    "ignore_eos": (False,),
    "logprobs": (None,),
    "min_p": (None, 0),
    "min_tokens": (None, 0),
    "stop_token_ids": (None, ()),
    "bad_words": (None, ()),
    "echo": (None, False),
}
"""Parameters that are refused, with the values that are off. Logprobs would need the tokens' ids."""


def check_fields(source: GenerateInput, sampling: Sampling) -> None:
    """Raise InvalidRequest for a request that cannot be written as a chat completion."""
    if source.messages is None:
        raise InvalidRequest(
            "the server of this model takes conversations only: send `messages`",
            param=next(f"input.{name}" for name in ("prompt", "token_ids", "prompts") if getattr(source, name)),
        )
    for name, off in _NO_FIELD.items():
        if getattr(sampling, name) not in off:
            raise InvalidRequest(f"the server of this model has no `{name}`: leave it out", param=f"sampling.{name}")
    if source.reasoning is not None and source.reasoning.max_tokens is not None:
        raise InvalidRequest(
            "the server of this model takes no number of tokens for reasoning: send the effort",
            param="input.reasoning.max_tokens",
        )
    if sampling.grammar is not None and sampling.grammar.kind is not GrammarKind.JSON_SCHEMA:
        raise InvalidRequest(
            f"the server of this model takes a JSON schema for the answer, and no {sampling.grammar.kind.value}",
            param="sampling.grammar",
        )


def least_tokens(estimate: int) -> int:
    """Return how few tokens a text may have whose number is estimated: only the server knows if it fits."""
    return estimate // 2


def chat_fields(source: GenerateInput, pictures: Sequence[str] = ()) -> dict[str, Any]:
    """Return the conversation and its tools as fields of a chat completion request.

    ``pictures``: the data URLs of its images, in order.
    """
    fields = source.model_dump(mode="json", exclude_none=True, exclude={"reasoning"})
    left = iter(pictures)
    for message, written in zip(source.messages or (), fields.get("messages", ()), strict=True):
        if written.pop("images", None):
            urls = [next(left) for _ in message.images or ()]
            written["content"] = content_parts(message, urls)
    effort = None if source.reasoning is None else source.reasoning.effort
    return fields if effort is None else {**fields, "reasoning_effort": effort.value}


def session_of(tenant_id: str, source: GenerateInput) -> str:
    """Return a name of a tenant's conversation, the same for all its turns; of another input, one for equal inputs.

    It is a digest of the messages up to the first one of the user: they stay when turns are added.
    """
    turns = source.messages or ()
    first = next((number for number, turn in enumerate(turns, 1) if turn.role == "user"), len(turns))
    kept = turns[:first] or (source.prompt, source.token_ids, source.prompts)
    return blake2b(repr((tenant_id, kept)).encode(), digest_size=16).hexdigest()


def content_parts(message: ChatMessage, urls: Sequence[str]) -> list[dict[str, Any]]:
    """Return the content of a message with images as parts of a chat completion request. ``urls``: of its images."""
    url_of = {id(image): url for image, url in zip(message.images or (), urls, strict=True)}
    made: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, str):
            made.append({"type": "text", "text": part})
            continue
        detail = {} if part.detail is None else {"detail": part.detail}
        made.append({"type": "image_url", "image_url": {"url": url_of[id(part)], **detail}})
    return made
