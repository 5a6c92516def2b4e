import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.policy.recognisers.catalogue import RECOGNISERS
from headrace.policy.text.patterns import BadPattern, compiled, parse_pattern

PATTERNS = [r"\bab{2,3}(?:c|de)*f\b", r"(?i:x[a-c]{0,4}) ?y+", r"a.?b|abc?d", r"(?:ab?){1,3}[^\d\s]z"]
SHIPPED = [one.pattern for one in RECOGNISERS[:6]]


@pytest.mark.parametrize(
    "pattern", [*PATTERNS, *SHIPPED[:1], pytest.param(SHIPPED[1], marks=pytest.mark.full), *SHIPPED[2:]]
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_every_beginning_of_a_match_is_open_and_nothing_more(pattern: str, data: st.DataObject) -> None:
    """Against the obvious way: the standard library's matcher, asked for every possible end."""
    shape = parse_pattern(pattern)
    opening = compiled(rf"(?:{shape.opening})\z")
    matched = data.draw(
        st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True).filter(lambda text: len(text) < 60)
    )
    before = data.draw(st.sampled_from(["", "\n", "\n\n"]))
    for cut in range(len(matched) + 1):
        text = before + matched[:cut]
        assert opening.search(text).start() <= len(before)


def test_what_can_be_no_beginning_is_not_open() -> None:
    shape = parse_pattern("foo(?:bar){1,2}")
    opening = compiled(rf"(?:{shape.opening})\z")
    texts = ("fo", "xfoob", "foobarx", "foobar", "foobarba", "foobarbarb", "foob f")
    opens = {text: len(text) - opening.search(text).start() for text in texts}
    assert opens == {"fo": 2, "xfoob": 4, "foobarx": 0, "foobar": 6, "foobarba": 8, "foobarbarb": 0, "foob f": 1}


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(?=a)b", "look-ahead"),
        (r"(a)\1", "back-reference"),
        ("(a", "regular expression"),
        ("a{1,1001}", "RE2 refuses"),
        ("^a", "a stream"),
        ("a$", r"use \b"),
        ("(?m:a)", "only i and s"),
        ("(?-i:a)", "only i and s"),
        ("(a|" * 300 + "b" + ")" * 300, "nested"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused_with_the_reason(pattern: str, said: str) -> None:
    with pytest.raises(BadPattern, match=re.escape(said)):
        parse_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "longest"), [("a{2,4}(?:bc|d)?", 6), ("a+", None), (r"\bx\b", 1), (r"\Bx", 1), ("a{0}b", 1), ("", 0)]
)
def test_the_longest_match_is_known(pattern: str, longest: int | None) -> None:
    assert parse_pattern(pattern).longest == longest
