"""The token sequences of texts that must not be sampled (``bad_words``), as vLLM makes them.

A tokenizer writes a word at the start of a text otherwise than after a space, so a text has up to two sequences. A
model can still spell the text with other tokens: only these sequences are ruled out.
"""

from collections.abc import Iterable

from headrace.prompts.tokenizer import Tokenizer


def banned_sequences(tokenizer: Tokenizer, bad_words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """Return the different token sequences of the texts, none of them empty."""
    spelled = (tuple(tokenizer.encode(text, add_special=False)) for word in bad_words for text in _forms(word))
    return tuple(dict.fromkeys(sequence for sequence in spelled if sequence))


def _forms(word: str) -> tuple[str, str]:
    bare = word.lstrip()
    return bare, f" {bare}"
