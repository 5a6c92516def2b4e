"""Outputs that are read as JSON, and rules about whole texts."""

import json
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.policy.documents import PolicyDocument
from headrace.policy.outputs import OutputFormat
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy, apply_input, apply_output
from headrace.policy.text.escapes import Escapes, written


def policy(*rules: dict[str, Any]) -> Policy:
    named = [{"id": f"r{number}", **rule} for number, rule in enumerate(rules)]
    return Policy(PolicyDocument.model_validate({"rules": named}))


def cut(text: str, seed: int) -> list[str]:
    draw = random.Random(seed)
    places = sorted(draw.sample(range(len(text) + 1), min(len(text), draw.choice([1, 3, len(text)]))))
    return [text[start:end] for start, end in pairwise([0, *places, len(text)])]


@given(text=st.text(), seed=st.integers(0, 2**32), is_ascii=st.booleans())
def test_escapes_that_are_read_and_written_say_the_same(text: str, seed: int, is_ascii: bool) -> None:
    said = json.dumps({"a": [text, "\\/😀"]}, ensure_ascii=is_ascii)
    escapes = Escapes()
    read = "".join(map(escapes.feed, cut(said, seed))) + escapes.finish()
    assert json.loads(written(read)) == json.loads(said)


@pytest.mark.parametrize("text", ["\\", "\\u", "\\u00e", "\\ud83d", "\\ud83d\\", "\\ud83dx", "\\alpha", "\\\\u0041"])
def test_what_is_no_escape_stays_as_it_is(text: str) -> None:
    escapes = Escapes()
    assert written("".join(map(escapes.feed, text)) + escapes.finish()) == text


MAILS = policy({"kinds": ["email", "private_key"], "action": "redact", "stage": "output"})
KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSj\n-----END PRIVATE KEY-----"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), at=st.sampled_from(["@", "\\u0040"]))
def test_a_string_in_json_is_guarded_as_its_reader_reads_it(seed: int, at: str) -> None:
    said = json.dumps({"to": "x\nann.miller@example.com", "key": KEY, "note": 'a "b" \\ c\t'}).replace("@", at)
    guard = MAILS.guarded_output(PlaceholderMap(), OutputFormat.JSON)
    out = "".join(map(guard.feed, cut(said, seed))) + guard.finish()
    assert json.loads(out) == {"to": "x\n<EMAIL_1>", "key": "<PRIVATE_KEY_1>", "note": 'a "b" \\ c\t'}
    assert guard.blocked_by is None


def test_what_an_output_redacts_is_never_put_back_into_it() -> None:
    both = policy({"kinds": ["email"], "action": "redact", "restore": True})
    vault = apply_input(both, ["I am ann@example.com"]).vault
    assert apply_output(both, "<EMAIL_1> and bob@example.com, <EMAIL_2>", vault).text == (
        "ann@example.com and <EMAIL_2>, <EMAIL_2>"
    )


@pytest.mark.parametrize(
    ("text", "is_let_in"),
    [
        ("The mill turns slowly by the river, and the miller sleeps.", True),
        ("Die Mühle steht am Fluss und dreht sich langsam im Wind.", False),
        ("水车在河边慢慢转动，磨坊主在睡觉", False),
        ("ok", True),
        ("4526 0181 5908 3012", True),
    ],
)
def test_an_input_in_another_language_is_blocked_as_far_as_that_is_known(text: str, is_let_in: bool) -> None:
    verdict = apply_input(policy({"languages": ["en", "fr"], "action": "block", "stage": "input"}), [text])
    assert (verdict.blocked_by is None, [hit.kind for hits in verdict.hits for hit in hits]) == (
        (True, []) if is_let_in else (False, ["language"])
    )
