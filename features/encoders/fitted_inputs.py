"""Texts and pairs of texts as an encoder takes them: an input that is too long is refused, or cut at its end."""

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.features.encoders.encoder_fields import MAX_TOKENS_TOGETHER, CutInput
from headrace.prompts.encoded_texts import EncodedTexts
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class FittedInput:
    """An input that fits the context window. ``num_cut`` of its tokens were left out."""

    encoded: EncodedTexts
    num_cut: int = 0


def fit_texts(
    tokenizer: Tokenizer, texts: str | Sequence[str], window: int, param: str, *, truncate: bool
) -> FittedInput:
    """Return a text, or a pair of texts, as tokens. ``truncate``: the text, or the second of the pair, may be cut.

    Raises InvalidRequest that names ``param`` if there are no tokens, or too many (code ``context_length_exceeded``).
    """
    encoded = tokenizer.encode_texts(*((texts,) if isinstance(texts, str) else texts))
    if not encoded.ids:
        raise InvalidRequest(f"`{param}` has no tokens: there is nothing to compute", param=param)
    excess = len(encoded.ids) - window
    if excess <= 0:
        return FittedInput(encoded)
    last = 0 if isinstance(texts, str) else 1
    places = [index for index, number in enumerate(encoded.text_of) if number == last]
    if not truncate or len(places) <= excess:
        raise too_long(param, f"{len(encoded.ids)}", window)
    dropped = set(places[-excess:])
    kept = [index for index in range(len(encoded.ids)) if index not in dropped]
    return FittedInput(encoded.keep(kept), excess)


def check_total(total: int, param: str) -> None:
    """Raise InvalidRequest if all inputs of a request have more than MAX_TOKENS_TOGETHER tokens."""
    if total > MAX_TOKENS_TOGETHER:
        raise InvalidRequest(
            f"`{param}` has {total} tokens, and one request may have {MAX_TOKENS_TOGETHER}: send several", param=param
        )


def num_tokens(inputs: Sequence[FittedInput]) -> int:
    """Return the tokens of all inputs."""
    return sum(len(one.encoded.ids) for one in inputs)


def cuts_of(nums_cut: Sequence[int]) -> tuple[CutInput, ...] | None:
    """Return which inputs were cut, for the output; None if none was. ``nums_cut``: for each input."""
    return tuple(CutInput(index=index, tokens=num) for index, num in enumerate(nums_cut) if num) or None


def too_long(param: str, length: str, window: int) -> InvalidRequest:
    """Return the error for a text of ``length`` tokens. OpenAI's message begins with the same words."""
    return InvalidRequest(
        f"this model's maximum context length is {window} tokens, `{param}` has {length}: shorten it",
        code="context_length_exceeded",
        param=param,
    )
