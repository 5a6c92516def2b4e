"""Requests for a model behind a server of chat completions: a conversation goes out, text comes back.

Such a server has the tokenizer, the chat template and the parser of tool calls. Its API has no field for some
parameters; a request with one is refused, because leaving the parameter out would change the answer.
"""

from typing import Any

from store.errors import InvalidRequest
from store.payloads.sampling_params import GrammarKind, Sampling
from store.tasks.generate import GenerateInput, ToolStyle

CALL_STYLE = ToolStyle.HERMES
"""How ``models.external.openai_chat`` writes the server's tool calls into the text of an answer."""

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


def chat_fields(source: GenerateInput) -> dict[str, Any]:
    """Return the conversation and its tools as fields of a chat completion request."""
    fields = source.model_dump(mode="json", exclude_none=True, exclude={"reasoning"})
    effort = None if source.reasoning is None else source.reasoning.effort
    return fields if effort is None else {**fields, "reasoning_effort": effort.value}
