"""The marks of reasoning of a request, as the engine takes them."""

from headrace.models.engine.reasoning import ReasoningTokens
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.payloads.reasoning import ReasoningFormat


def reasoning_tokens(marks: ReasoningFormat, tokenizer: Tokenizer) -> ReasoningTokens:
    """Return the marks of reasoning as tokens, with the request's bounds."""
    opening, closing, direct = (
        tuple(tokenizer.encode(mark, add_special=False)) for mark in (marks.opening, marks.closing, marks.direct)
    )
    return ReasoningTokens(
        opening, closing, direct, is_open=marks.is_open, is_forced=marks.is_forced, budget=marks.max_tokens
    )
