"""What a value is dressed up with does not hide it, and no word becomes another by it."""

import unicodedata
from collections.abc import Iterable

import pytest

from headrace.policy.documents import PolicyDocument
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy, apply_output
from headrace.policy.text.normalisation import normalise

CARD = "4526018159083012"
PHRASES = ["café noir", "an\u0303o", "straße", "ΟΔΟΣ", "ışık", "titan"]


def policy(*, inside_words: bool = False) -> Policy:
    deny = {"phrases": PHRASES, "inside_words": inside_words}
    rules = [
        {"id": "pii", "kinds": ["card", "email", "phone"], "action": "redact", "stage": "output"},
        {"id": "words", "deny": deny, "action": "redact", "stage": "output"},
    ]
    return Policy(PolicyDocument.model_validate({"rules": rules}))


RULES = policy()


def streamed(text: str) -> str:
    stream = RULES.guarded_output(PlaceholderMap())
    return "".join(map(stream.feed, text)) + stream.finish()


@pytest.mark.parametrize(
    "between",
    [
        *("\u200b", "\u034f", "\u061c", "\u180b", "\u2060", "\u206a", "\u20e3", "\u3164", "\ufe0f", "\U000e0041"),
        *("\u0301", "\u0336", "\u0332\u0301", "\ufe0f\u20e3"),
    ],
    ids=ascii,
)
def test_what_stands_between_the_digits_is_read_over(between: str) -> None:
    text = f"pay {between.join(CARD)} now"
    assert apply_output(RULES, text).text == streamed(text) == "pay <CARD_1> now"


@pytest.mark.parametrize(
    "text",
    [
        "𝐚𝐧𝐧@𝐞𝐱𝐚𝐦𝐩𝐥𝐞.𝐜𝐨𝐦",
        "𝘢𝘯𝘯@𝘦𝘹𝘢𝘮𝘱𝘭𝘦.𝘤𝘰𝘮",
        "ann﹫example.com",
        "a\u0301nn@example.com",
        "a\u0336n\u0336n\u0336@example.com",
        "ann%40example.com",
        "ann&#64;example.com",
        "j%40x@example.com",
    ],
)
def test_an_email_is_one_however_it_is_drawn(text: str) -> None:
    assert apply_output(RULES, f"to {text} now").text == streamed(f"to {text} now") == "to <EMAIL_1> now"


@pytest.mark.parametrize(
    "text",
    [
        "CAFÉ noir",
        "cafe\u0301 noir",
        "CAFE\u0301 NOIR",
        "año",
        "STRASSE",
        "Straße",
        "οδοσ",
        "οδος",
        "IŞIK",
        "ti\u0336tan",
    ],
)
def test_a_denied_phrase_is_one_however_it_is_written(text: str) -> None:
    assert apply_output(RULES, f"a {text} b").text == streamed(f"a {text} b") == "a <DENIED_1> b"


@pytest.mark.parametrize("text", ["cafe noir", "ano", "ti\u0301tan", "títan", "titan\u0301", "titań"])
def test_an_accent_makes_another_word(text: str) -> None:
    assert apply_output(RULES, text).text == streamed(text) == text


def test_places_are_those_of_the_text() -> None:
    text = "1\u0301\u200b2a\u0301\u03362\u0301 ＡB𝟙"
    seen = normalise(text)
    assert seen.text == "12a\u03012 AB1"
    assert [text[seen.original(place)] for place in range(len(seen.text))] == list("12a\u03012 ＡB𝟙")


def test_whatever_unicode_takes_for_nothing_is_nothing() -> None:
    """Of format characters, but for those that are drawn around numbers."""
    drawn = {0x600, 0x601, 0x602, 0x603, 0x604, 0x605, 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
    seen = [
        code
        for code in range(0x110000)
        if unicodedata.category(chr(code)) == "Cf" and code not in drawn and not 0x13430 <= code < 0x13440
    ]
    assert [hex(code) for code in seen if normalise(f"a{chr(code)}b").text != "ab"] == []


def test_an_accent_belongs_to_the_letter_before_it_though_that_came_earlier() -> None:
    assert normalise("\u0301 said", "e").text == "\u0301 said"
    assert normalise("\u0301 said", " ").text == normalise("\u0301 said").text == " said"


def _ranges(codes: Iterable[int]) -> str:
    found: list[list[int]] = []
    for code in codes:
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return " ".join(f"{first:x}" if first == last else f"{first:x}-{last:x}" for first, last in found)


def test_dashes_spaces_line_ends_and_signs_without_width_are_read_as_one() -> None:
    """In Unicode's blocks that have such signs."""
    codes = [*range(0x80, 0x3200), *range(0xFE00, 0x10000), *range(0x1BC00, 0x1BD00), *range(0x1D100, 0x1D200)]
    codes += range(0xE0000, 0xE1000)
    read = {code: normalise(f"a{chr(code)}").text[1:] for code in codes}
    by_sign = {sign: _ranges(code for code, found in read.items() if found == sign) for sign in ("-", " ", "\n", "")}
    assert by_sign == {
        "-": "2d7 58a 1806 2010-2015 2043 2212 2796 2e3a-2e3b 30fc fe58 fe63 ff0d",
        " ": "a0 1680 2000-200a 202f 205f 3000",
        "\n": "85 2028-2029",
        "": "ad 305 30d-30e 310 312 315-31a 31c-322 329-32c 32f 332-341 343-344 346-36f 61c 115f-1160 17b4-17b5 "
        "180b-180f 1ab0-1aff 1dc0-1dff 200b-200f 202a-202e 2060-206f 20d0-20ff 3164 fe00-fe0f feff ffa0 "
        "fff0-fffb 1bca0-1bca3 1d173-1d17a e0000-e0fff",
    }
    accents = [code for code in range(0x300, 0x370) if read[code] and normalise(f"1{chr(code)}").text == "1"]
    assert _ranges(accents) == "300-304 306-30c 30f 311 313-314 31b 323-328 32d-32e 330-331 342 345"
