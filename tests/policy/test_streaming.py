"""A text in pieces is guarded as the whole text is, wherever it is cut."""

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.policy.budget import output_budget
from headrace.policy.documents import PolicyDocument
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy, apply_input, apply_output
from headrace.policy.recognisers.recogniser import CONTEXT_CHARS, MAX_MATCH_CHARS, STRUCTURED
from headrace.policy.streaming import GuardedText
from tests.policy.evaluation import first


def policy(action: str, max_chars: int | None = None) -> Policy:
    deny = {
        "phrases": ["Project Titan", "titanic plan", "禁词", "ab"],
        "patterns": [r"x\d{2,40}y", r"\bq[a-c ]{0,9}d\b"],
    }
    rules = [
        {"id": "in", "action": "redact", "kinds": ["email", "card"], "stage": "input", "restore": True},
        {"id": "kinds", "action": action, "kinds": STRUCTURED, "stage": "output"},
        {"id": "deny", "action": action, "deny": deny, "stage": "output"},
    ]
    if max_chars is not None:
        rules.append({"id": "long", "action": "block", "max_chars": max_chars})
    return Policy(PolicyDocument.model_validate({"rules": rules}))


REDACT, BLOCK, LIMITED = policy("redact"), policy("block"), policy("mask", max_chars=120)

FRAGMENTS = [
    *[case.text for case in first()],
    *("Project Titan", "project tita", "titanic plan ", "禁词", "x123y", "x12", "qa b cd", "q"),
    *("<EMAIL_1>", "<EMAIL_", "<CARD_2>", "-----BEGIN RSA PRIVATE KEY-----\n", "ey"),
    *("\u200b", "é", "１２", " ", "\n", ".", "-", "@", "1", "a", "😀"),
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text("ab1 -.@:é", max_size=6), min_size=1, max_size=6).map("".join)
VAULT = apply_input(REDACT, ["ann@example.com and bob@example.com have 4526018159083012"]).vault


def guarded(rules: Policy) -> GuardedText:
    return GuardedText(rules.output, PlaceholderMap(), budget=output_budget())


def streamed(rules: Policy, text: str, cuts: list[int], vault: PlaceholderMap) -> tuple[str, str | None, list[Any]]:
    stream = rules.guarded_output(vault.model_copy(deep=True))
    out = "".join(stream.feed(text[start:end]) for start, end in pairwise([0, *cuts, len(text)]))
    return out + stream.finish(), stream.blocked_by, stream.hits


@given(text=TEXTS, seed=st.integers(0, 2**32), rules=st.sampled_from([REDACT, BLOCK, LIMITED]))
def test_wherever_a_text_is_cut_the_outcome_is_that_of_the_whole(text: str, seed: int, rules: Policy) -> None:
    whole = apply_output(rules, text, VAULT)
    draw = random.Random(seed)
    cuts = sorted(draw.sample(range(len(text) + 1), min(len(text), draw.choice([1, 2, 5, len(text)]))))
    assert streamed(rules, text, cuts, VAULT) == (whole.text, whole.blocked_by, list(whole.hits))


@pytest.mark.parametrize("case", [case for case in first() if case.marked][::7], ids=lambda case: case.text[:30])
def test_nothing_of_what_is_forbidden_leaves_before_the_verdict(case: Any) -> None:
    """Character by character: the output is always as clean as that of the whole text."""
    text = f"First {case.text} last"
    clean = apply_output(REDACT, text).text
    stream = guarded(REDACT)
    left = ""
    for character in text:
        left += stream.feed(character)
        assert clean.startswith(left)
    assert left + stream.finish() == clean
    for start, end, _ in case.marked:
        assert case.text[start:end] not in clean


def test_words_leave_as_soon_as_they_end() -> None:
    stream = guarded(REDACT)
    assert stream.feed("The quick bro") == "The quick "
    assert stream.feed("wn ") == "brown "
    assert stream.feed("projec") == ""
    assert stream.feed("t plan") == "project "
    assert stream.num_held == len("plan")


@pytest.mark.parametrize("size", [1000, 100_000])
def test_a_key_without_end_is_held_only_so_long_and_none_of_it_leaves(size: int) -> None:
    head = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxIn0."
    text = f"token {head}{'aB3_' * (size // 4)} and on"
    whole = apply_output(REDACT, text)
    assert whole.text == "token <JWT_1> and on"
    stream = guarded(REDACT)
    out, most = "", 0
    for start in range(0, len(text), 97):
        out += stream.feed(text[start : start + 97])
        most = max(most, stream.num_held)
    assert out + stream.finish() == whole.text
    assert most <= MAX_MATCH_CHARS * 17 // 16 + 97
    assert (CONTEXT_CHARS, MAX_MATCH_CHARS) == (64, 8192)


def test_whatever_comes_a_bounded_part_is_held() -> None:
    stream = guarded(REDACT)
    for unit in ("a", "1 ", "a@b", "-----BEGIN "):
        for _ in range(250):
            stream.feed(unit * 40)
            assert stream.num_held <= MAX_MATCH_CHARS * 17 // 16 + 120


def test_a_phrase_that_is_said_again_and_again_is_held_a_bounded_while() -> None:
    """Its places overlap without end."""
    deny = {"phrases": ["ha ha", "ha ha ha"]}
    rules = Policy(
        PolicyDocument.model_validate({"rules": [{"id": "ha", "action": "redact", "deny": deny, "stage": "output"}]})
    )
    text = "ha " * 3000
    whole = apply_output(rules, text).text
    stream = guarded(rules)
    out, most = "", 0
    for start in range(0, len(text), 7):
        out += stream.feed(text[start : start + 7])
        most = max(most, stream.num_held)
    assert out + stream.finish() == whole
    assert most < 1200
    assert len(whole) < len(text) / 20


def test_after_a_block_nothing_leaves() -> None:
    stream = guarded(BLOCK)
    assert stream.feed("to project titan, and") == "to "
    assert stream.blocked_by == "deny"
    assert (stream.feed(" more"), stream.finish(), stream.num_held) == ("", "", 0)
