"""The parts of which a policy's verdict is made: phrases, overlaps, placeholders, masks, hits, schemas, languages."""

from collections.abc import Mapping
from typing import Any

import pytest

from headrace.policy.documents import Action, Rule
from headrace.policy.guards import Match, blocking_rule, group_overlaps, masked, resolve_overlaps
from headrace.policy.names import AnalyserFinder
from headrace.policy.outputs import MissingFinder, OutputFormat
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import apply_input, apply_output
from headrace.policy.recognisers.recogniser import Kind, Recogniser
from headrace.policy.schemas import MAX_SCHEMA_CHARS, check_schema, first_problem, is_json, is_valid
from headrace.policy.streaming import Hit, counted
from headrace.policy.text.escapes import Escapes
from headrace.policy.text.languages import LangidFinder
from headrace.policy.text.normalisation import normalise
from tests.policy.rule_fields import EMAIL
from tests.policy.test_policies import policy


@pytest.mark.parametrize(
    ("lists", "text", "redacted"),
    [
        ({"phrases": ["titan"]}, "ﬁx ßa titan", "ﬁx ßa <DENIED_1>"),
        ({"phrases": ["titan"]}, "Titan TITAN", "<DENIED_1> <DENIED_1>"),
        ({"patterns": [r"proj-\d\d"]}, "PROJ-12 proj-12 proj-13", "<DENIED_1> <DENIED_1> <DENIED_2>"),
        ({"phrases": ["a b"]}, "a\u00a0b, a\tb, xa b, a bx", "<DENIED_1>, <DENIED_2>, xa b, a bx"),
        ({"phrases": ["ห้าม"]}, "นี่ห้ามนะ", "นี่<DENIED_1>นะ"),
        ({"phrases": ["ហាម"]}, "កហាមក", "ក<DENIED_1>ក"),
        ({"phrases": ["ひみつ"]}, "これはひみつだ", "これは<DENIED_1>だ"),
        ({"phrases": ["비밀"]}, "비밀 비밀번호", "<DENIED_1> 비밀번호"),
        ({"phrases": ["豈更"]}, "車豈更車", "車<DENIED_1>車"),
        ({"phrases": ["ab cd", "cd ef"]}, "x ab cd ef y", "x <DENIED_1> y"),
        (
            {"phrases": ["titan"]},
            f"{'x ' * 2046}titan {'x ' * 2046}titan",
            f"{'x ' * 2046}<DENIED_1> {'x ' * 2046}<DENIED_1>",
        ),
        ({"phrases": ["titan"], "inside_words": True}, "xtitany", "x<DENIED_1>y"),
        ({"patterns": ["ab", r"code \d{1,9} red"]}, "x code 12345 red ab", "x <DENIED_1> <DENIED_2>"),
        # The longest phrase is held back, and one of invisible characters denies nothing.
        ({"phrases": ["ab", "code red", "\u200b"]}, "x code red ab", "x <DENIED_1> <DENIED_2>"),
    ],
)
def test_a_phrase_is_found_whole(lists: Mapping[str, Any], text: str, redacted: str) -> None:
    rules = policy({"deny": lists, "action": "redact"})
    assert apply_output(rules, text).text == redacted
    stream = rules.guarded_output(PlaceholderMap())
    assert "".join(map(stream.feed, text)) + stream.finish() == redacted


def test_placeholders_are_numbered_by_kind_and_value() -> None:
    names = PlaceholderMap()
    names.reserve(["<EMAIL_2> and <A_B_C_123456>, not <E_1> <email_3> <EMAIL_1234567>"])
    assert names.taken == {"<EMAIL_2>", "<A_B_C_123456>"}
    long = "x" * 4096
    assert names.name("email", f"{long}a", "va", restorable=True) == "<EMAIL_1>"
    assert names.name("email", f"{long}b", "vb", restorable=True) == "<EMAIL_1>"
    assert names.name("phone", f"{long}a", "vp", restorable=False) == "<PHONE_1>"
    assert names.name("email", "y", "vy", restorable=True) == "<EMAIL_3>"
    names.number_after(7)
    assert names.name("email", "z", "vz", restorable=False) == "<EMAIL_8>"
    assert names.name("email", "w", "vw", restorable=False) == "<EMAIL_9>"
    assert names.values == {"<EMAIL_1>": "va", "<EMAIL_3>": "vy"}
    assert names.counts == {"EMAIL": 9, "PHONE": 1}
    assert "va" not in repr(names)
    assert long not in repr(names)


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        ("card", "4526-0181-5908-3012", "****-****-****-3012"),
        ("iban", "DE89 3704 0044 0532 0130 00", "**** **** **** **** **30 00"),
        ("phone", "+49 30 901820", "+** ** **1820"),
        ("us_ssn", "374-24-9938", "***-**-9938"),
        ("national_id", "X1234", "*1234"),
        ("phone", "123", "123"),
        ("api_key", "ab-12", "**-**"),
        ("email", "a@b.c", "*@*.*"),
    ],
)
def test_a_mask_keeps_the_last_four_of_numbers(kind: str, value: str, shown: str) -> None:
    assert masked(kind, value) == shown


def test_the_smallest_limit_of_characters_blocks() -> None:
    rules = policy({"max_chars": 9, "action": "block"}, {"max_chars": 5, "action": "block"}, EMAIL)
    verdict = apply_input(rules, ["abcde", "abcdef"])
    assert (verdict.blocked_by, verdict.texts) == ("r1", ())
    assert verdict.hits == ((), (Hit("r1", "max_chars", Action.BLOCK, 5, 5),))
    rules = policy({"max_chars": 5, "action": "block", "stage": "output"})
    stream = rules.guarded_output(PlaceholderMap())
    assert (stream.feed("ab "), stream.feed("c "), stream.blocked_by, stream.feed("d")) == ("ab ", "c ", None, "")
    assert stream.blocked_by == "r0"
    assert stream.hits == [Hit("r0", "max_chars", Action.BLOCK, 5, 5)]


def test_hits_are_counted_by_rule_kind_and_action() -> None:
    hits = [
        Hit("b", "email", Action.MASK, 0, 1),
        Hit("a", "phone", Action.FLAG, 1, 2),
        Hit("b", "email", Action.MASK, 3, 4),
    ]
    assert counted(hits) == [
        {"rule": "a", "kind": "phone", "action": "flag", "count": 1},
        {"rule": "b", "kind": "email", "action": "mask", "count": 2},
    ]


@pytest.mark.parametrize(
    ("rules", "properties"),
    [
        ([EMAIL], (False, True, False)),
        ([EMAIL | {"stage": "input"}], (False, False, False)),
        ([EMAIL | {"action": "allow"}], (False, True, False)),
        ([EMAIL | {"action": "block"}], (False, True, True)),
        ([EMAIL | {"action": "mask"}], (False, True, True)),
        ([EMAIL | {"action": "redact", "stage": "input"}], (False, False, False)),
        ([EMAIL | {"action": "redact", "stage": "input", "restore": True}], (True, True, True)),
    ],
)
def test_a_policy_knows_what_it_does_to_outputs(rules: list[dict[str, Any]], properties: tuple[bool, ...]) -> None:
    found = policy(*rules)
    assert (found.restores, found.looks_at_outputs, found.changes_outputs) == properties


def test_a_schema_is_held_against_the_text_that_leaves() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^<EMAIL_1>$"}}}
    rules = policy(
        {"kinds": ["email"], "action": "redact", "stage": "output"},
        {"json_schema": schema, "action": "block", "stage": "output"},
    )
    for text, leaves in (('{"a": "ann@example.com"}', '{"a": "<EMAIL_1>"}'), ('{"a": "b"}', ""), ("no", "")):
        stream = rules.guarded_output(PlaceholderMap(), OutputFormat.JSON)
        assert stream.feed(text) + stream.finish() == leaves
        assert stream.blocked_by == (None if leaves else "r1")


def test_json_that_a_rule_breaks_does_not_leave() -> None:
    rules = policy(EMAIL, {"kinds": ["card"], "action": "mask", "stage": "output"})
    redacting = policy({"kinds": ["email"], "action": "flag"}, {"kinds": ["card"], "action": "redact"})
    number = "4526018159083012"
    broken = redacting.guarded_output(PlaceholderMap(), OutputFormat.JSON)
    broken.feed(f'{{"a": {number}, "b": "a@example.com"}}')
    assert (broken.finish(), broken.blocked_by) == ("", "r1")
    for form, text, blocked_by in (
        (OutputFormat.JSON, f'{{"a": {number}}}', "r1"),
        (OutputFormat.JSON, f'{{"a": "{number}"}}', None),
        (OutputFormat.JSON, f"{{a: {number}}}", None),
        (OutputFormat.CALLS, f'{{"a": {number}}}', None),
    ):
        stream = rules.guarded_output(PlaceholderMap(), form)
        stream.feed(text)
        stream.finish()
        assert (stream.blocked_by, stream.feed("more"), stream.finish() if blocked_by else "") == (
            blocked_by,
            "" if blocked_by else stream.feed(""),
            "",
        )


def test_the_placeholders_of_an_earlier_turn_are_kept_and_not_changed() -> None:
    rules = policy(EMAIL | {"action": "redact", "restore": True}, {"deny": {"phrases": ["stop"]}, "action": "block"})
    first = apply_input(rules, ["ann@example.com"])
    before = first.vault.model_copy(deep=True)
    second = apply_input(rules, ["bob@example.com ann@example.com"], first.vault)
    assert second.texts == ("<EMAIL_2> <EMAIL_1>",)
    assert first.vault == before
    assert second.vault.values == {"<EMAIL_1>": "ann@example.com", "<EMAIL_2>": "bob@example.com"}
    blocked = apply_input(rules, ["stop"], first.vault)
    assert (blocked.blocked_by, blocked.vault) == ("r1", PlaceholderMap())


def test_a_rule_for_languages_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = policy({"languages": ["en"], "action": "block", "stage": "input"})
    monkeypatch.setattr("headrace.policy.policies.installed", lambda: None)
    with pytest.raises(MissingFinder, match=r"`language` \(py3langid\)"):
        rules.check()
    policy(EMAIL).check()


def test_a_language_is_known_from_a_probability_on() -> None:
    class Identifier:
        def __init__(self, *found: Any) -> None:
            self.found = found

        def classify(self, _text: str) -> tuple[Any, ...]:
            return self.found

    assert [LangidFinder(Identifier(*one)).find("x") for one in (("en", 0.5), ("en", 0.49), ("zxx", 0.9))] == [
        "en",
        None,
        None,
    ]


def test_names_are_taken_from_a_score_on() -> None:
    class Result:
        def __init__(self, entity_type: str, score: float) -> None:
            self.entity_type, self.start, self.end, self.score = entity_type, 1, 4, score

    class Analyser:
        asked: tuple[Any, ...] = ()

        def analyze(self, *asked: Any) -> list[Result]:
            self.asked = asked
            return [Result("PERSON", 0.6), Result("LOCATION", 0.59), Result("LOCATION", 1), Result("ORGANIZATION", 1)]

    analyser = Analyser()
    assert list(AnalyserFinder(analyser, language="de").find("text")) == [
        (1, 4, "person"),
        (1, 4, "location"),
        (1, 4, "organization"),
    ]
    assert analyser.asked == ("text", "de", ["PERSON", "LOCATION", "ORGANIZATION"])


def test_a_schema_has_a_size_and_a_problem_has_its_place() -> None:
    filler = MAX_SCHEMA_CHARS - len('{"title": ""}')
    check_schema({"title": "x" * filler})
    with pytest.raises(ValueError, match=r"`variables` .* 65536 "):
        check_schema({"title": "x" * (filler + 1)}, "variables")
    with pytest.raises(ValueError, match="`json_schema`"):
        check_schema({"pattern": "(?=a)b"})
    validator = check_schema({"properties": {"a": {"items": {"properties": {"b": {"type": "string"}}}}}})
    assert first_problem(validator, {"a": [{"b": "x"}]}) is None
    place, said = first_problem(validator, {"a": [{"b": "x"}, {"b": 3141}]}) or ("", "")
    assert (place, '"string"' in said, "3141" in said) == ("a.1.b", True, False)
    assert (is_valid(validator, '{"a": []}'), is_valid(validator, '{"a": [{"b": 1}]}')) == (True, False)
    deep = "[" * 100_000
    assert (is_valid(validator, deep), is_json(deep), is_json("{}"), is_json("{")) == (False, False, True, False)


def test_signs_of_other_scripts_become_plain_ones() -> None:
    signs = "a\ud800b\u2028c\u2796d\u30fce\uff0df\u3000g\u00a0h\u0663\u200bi\U0001d7d9\uff1a\ufe5a\u33c4"
    assert normalise(signs).text == "a\ufffdb\nc-d-e-f g h3i1:)\u33c4"
    assert normalise("\ufe3bx").text == "\ufe3bx"


def test_an_escape_that_does_not_end_is_given_back_once() -> None:
    escapes = Escapes()
    assert (escapes.feed("a\\u00"), escapes.finish(), escapes.finish()) == ("a", "\\u00", "")


Given = tuple[str, int, int, int]
"""Name, priority, start and end."""

ACTIONS = [("first", Action.MASK), ("second", Action.BLOCK), ("third", Action.BLOCK)]


def matches(*given: Given) -> list[Match]:
    return [
        Match(start, end, Recogniser(name, "email", priority, "", lambda _text, _before: []), None)
        for name, priority, start, end in given
    ]


def shown(found: list[Match]) -> list[tuple[str, int, int]]:
    return [(one.recogniser.name, one.start, one.end) for one in found]


def test_matches_that_overlap_are_one_group_and_neighbours_are_not() -> None:
    found = matches(("e", 1, 9, 11), ("a", 1, 0, 8), ("b", 1, 1, 3), ("c", 1, 7, 9), ("d", 1, 12, 13))
    assert [[one.recogniser.name for one in group] for group in group_overlaps(found)] == [
        ["a", "b", "c"],
        ["e"],
        ["d"],
    ]
    assert list(group_overlaps([])) == []


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([("a", 1, 0, 3)], [("a", 0, 3)]),
        # The higher priority has the shared characters, the other one keeps the rest on both sides.
        ([("low", 1, 0, 10), ("high", 2, 3, 5)], [("low", 0, 3), ("high", 3, 5), ("low", 5, 10)]),
        # A match behind its end takes nothing away, and adds nothing.
        (
            [("a", 3, 5, 8), ("b", 3, 20, 25), ("c", 2, 7, 21), ("d", 1, 0, 10)],
            [("d", 0, 5), ("a", 5, 8), ("c", 8, 20), ("b", 20, 25)],
        ),
        ([("a", 3, 2, 4), ("b", 3, 6, 8), ("d", 1, 0, 7)], [("d", 0, 2), ("a", 2, 4), ("d", 4, 6), ("b", 6, 8)]),
        # Of the same priority the longer one comes first, then the one further to the left.
        ([("short", 1, 0, 4), ("long", 1, 2, 8)], [("short", 0, 2), ("long", 2, 8)]),
        ([("right", 1, 2, 6), ("left", 1, 0, 4)], [("left", 0, 4), ("right", 4, 6)]),
        ([("a", 2, 0, 6), ("b", 1, 2, 6)], [("a", 0, 6)]),
    ],
)
def test_each_character_has_one_match(given: list[Given], kept: list[tuple[str, int, int]]) -> None:
    assert shown(resolve_overlaps(matches(*given))) == kept


def test_the_first_rule_that_blocks_is_named() -> None:
    rules = [Rule(id=name, action=action, kinds=(Kind.EMAIL,)) for name, action in ACTIONS]
    (one,) = matches(("a", 1, 0, 1))
    group = [Match(one.start, one.end, one.recogniser, rule) for rule in (None, *rules)]
    found = blocking_rule(group)
    assert found is not None
    assert found.id == "second"
    assert blocking_rule(group[:2]) is None
