"""Incremental text: whole characters only, the same as decoding everything at once, at a steady cost."""

import random
from collections.abc import Sequence

import pytest

from headrace.prompts.detokenizer import Detokenizer
from headrace.prompts.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer

TEXTS = [
    "plain words, then more words.",
    "😀👩‍👩‍👧‍👦 🇩🇪 emoji",
    "漢字かな交じり文 and 한국어",
    "héllo  wörld\n\n\ttabs",
    "a\u0301 combining, \u200b zero width, \ufffd itself",
]


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.add(token_id) for token_id in ids), detokenizer.flush()]


@pytest.fixture(params=["byte level", "byte fallback", "bytes"])
def tokenizer(
    request: pytest.FixtureRequest, smollm2_files: dict[str, bytes], byte_fallback_files: dict[str, bytes]
) -> Tokenizer:
    match request.param:
        case "byte level":
            return load_tokenizer(smollm2_files)
        case "byte fallback":
            return load_tokenizer(byte_fallback_files)
        case _:
            return ByteTokenizer()


@pytest.mark.parametrize("text", TEXTS)
def test_joined_it_is_the_whole_text_and_no_piece_is_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special=False)
    found = pieces(tokenizer, ids)
    assert "".join(found) == tokenizer.decode(ids)
    assert text.count("\ufffd") == "".join(found).count("\ufffd")


def test_random_ids_give_what_decoding_all_of_them_gives(tokenizer: Tokenizer) -> None:
    """Random ids are mostly broken UTF-8, special tokens in odd places, and unknown ids."""
    draw = random.Random(7)
    # Byte tokens crowd at the low ids of each vocabulary.
    pools = [range(3, 260), range(tokenizer.vocab_size), range(tokenizer.vocab_size + 5)]
    for _ in range(300):
        pool = draw.choice(pools)
        ids = [draw.choice(pool) for _ in range(draw.randint(1, 40))]
        if isinstance(tokenizer, ByteTokenizer):
            ids = [token_id % 257 for token_id in ids]
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids), ids


def test_text_is_given_out_as_soon_as_it_is_certain(smollm2_files: dict[str, bytes]) -> None:
    tokenizer = load_tokenizer(smollm2_files)
    ids = tokenizer.encode("Hi 😀!", add_special=False)
    detokenizer = Detokenizer(tokenizer)
    texts = [detokenizer.add(token_id) for token_id in ids]
    assert texts[0] == "Hi"
    assert texts[-1] == "!"
    assert detokenizer.flush() == ""


def test_half_a_character_at_the_end_is_one_replacement(smollm2_files: dict[str, bytes]) -> None:
    tokenizer = load_tokenizer(smollm2_files)
    ids = tokenizer.encode("ok 😀", add_special=False)[:-1]
    found = pieces(tokenizer, ids)
    assert found[-1] == "\ufffd"
    assert "".join(found) == tokenizer.decode(ids)


def test_a_run_of_byte_tokens_waits_for_its_end(byte_fallback_files: dict[str, bytes]) -> None:
    """One bad byte at the end of a run makes the reference replace every byte of it."""
    tokenizer = load_tokenizer(byte_fallback_files)
    emoji = [3 + byte for byte in "😀".encode()]
    word, bad = 260, 3 + 0xFF
    assert pieces(tokenizer, [*emoji, word]) == ["", "", "", "", "😀 Hello", ""]
    assert pieces(tokenizer, [*emoji, bad, word]) == ["", "", "", "", "", "\ufffd" * 5 + " Hello", ""]


class Counting:
    """A tokenizer that counts how many ids it was asked to decode."""

    def __init__(self, inner: Tokenizer) -> None:
        self.inner = inner
        self.num_decoded = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def decode(self, ids: Sequence[int]) -> str:
        self.num_decoded += len(ids)
        return self.inner.decode(ids)


def test_the_cost_of_a_token_does_not_grow(byte_fallback_files: dict[str, bytes]) -> None:
    tokenizer = Counting(load_tokenizer(byte_fallback_files))
    ids = [259, 260, 263] * 700
    assert "".join(pieces(tokenizer, ids)) == tokenizer.inner.decode(ids)
    assert tokenizer.num_decoded < 8 * len(ids)
