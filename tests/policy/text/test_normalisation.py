"""What a value is dressed up with does not hide it, and no word becomes another by it."""

import unicodedata

import pytest

from policy.documents import PolicyDocument
from policy.policies import Policy, apply_output, output_stream
from policy.text.normalisation import normalise

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
    stream = output_stream(RULES)
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
