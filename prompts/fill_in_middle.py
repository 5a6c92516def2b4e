"""Fill-in-the-middle prompts: the texts before and after a gap, between the tokens that the model was trained with.

The order is prefix, suffix, middle (PSM, Bavarian et al. 2022), the usual one: the answer begins where the prompt ends.
"""

from headrace.prompts.tokenizer import Tokenizer
from headrace.store.errors import InvalidRequest

_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen 2.5 Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder 2
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),  # DeepSeek Coder
)


def around_gap(tokenizer: Tokenizer, prompt: str, suffix: str) -> str:
    """Return the prompt for the text between ``prompt`` and ``suffix``.

    Raises InvalidRequest for a model without such tokens.
    """
    for marks in _MARKS:
        if all(tokenizer.added_token_id(mark) is not None for mark in marks):
            before, after, gap = marks
            return f"{before}{prompt}{after}{suffix}{gap}"
    raise InvalidRequest(
        "this model has no tokens for filling in the middle of a text: leave out `input.suffix`", param="input.suffix"
    )
