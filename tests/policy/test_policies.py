"""What a policy does to whole texts."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from headrace.policy.documents import PolicyDocument
from headrace.policy.outputs import MissingFinder
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy, apply_input, apply_output

KINDS = ["email", "phone", "card", "iban", "us_ssn", "national_id", "ip_address", "api_key", "jwt", "private_key"]


def policy(*rules: dict[str, Any]) -> Policy:
    document = {"rules": [{"id": f"r{number}", **rule} for number, rule in enumerate(rules)]}
    return Policy(PolicyDocument.model_validate(document))


REDACT = {"kinds": KINDS, "action": "redact", "restore": True, "stage": "input"}


def test_the_same_value_has_the_same_placeholder_in_every_message() -> None:
    verdict = apply_input(
        policy(REDACT),
        ["I am ann@example.com, card 4526 0181 5908 3012.", "Is ANN@example.com or bob@example.com 4526018159083012?"],
    )
    assert verdict.texts == (
        "I am <EMAIL_1>, card <CARD_1>.",
        "Is <EMAIL_1> or <EMAIL_2> <CARD_1>?",
    )
    assert [(hit.rule_id, hit.kind, hit.action, hit.start, hit.end) for hit in verdict.hits[0]] == [
        ("r0", "email", "redact", 5, 20),
        ("r0", "card", "redact", 27, 46),
    ]
    assert "example.com" not in repr(verdict)


def test_values_come_back_where_the_model_names_them() -> None:
    rules = policy(REDACT, {"kinds": ["email"], "action": "redact", "stage": "output"})
    assert (rules.restores, rules.looks_at_outputs, rules.changes_outputs) == (True, True, True)
    given = apply_input(rules, ["Write to ann@example.com."])
    vault = PlaceholderMap.model_validate_json(given.vault.model_dump_json())
    said = apply_output(rules, "To <EMAIL_1>, cc eve@example.org and <EMAIL_7>", vault)
    assert said.text == "To ann@example.com, cc <EMAIL_2> and <EMAIL_7>"
    assert apply_output(rules, "x@example.com <EMAIL_1>").text == "<EMAIL_1> <EMAIL_1>"
    assert given.vault == vault


def test_a_placeholder_that_the_caller_wrote_stays_his() -> None:
    rules = policy(REDACT)
    given = apply_input(rules, ["<EMAIL_1> is a form; ann@example.com"])
    assert given.texts == ("<EMAIL_1> is a form; <EMAIL_2>",)
    assert apply_output(rules, "<EMAIL_1> <EMAIL_2>", given.vault).text == "<EMAIL_1> ann@example.com"


def test_masked_values_keep_what_their_owners_know_them_by() -> None:
    rules = policy({"kinds": KINDS, "action": "mask"})
    text = "4526-0181-5908-3012, ann@example.com"
    assert apply_output(rules, text).text == "****-****-****-3012, ***@*******.***"


def test_the_first_rule_that_names_a_thing_decides() -> None:
    rules = policy(
        {"kinds": ["ip_address"], "action": "allow"},
        {"kinds": ["phone"], "action": "flag"},
        {"kinds": KINDS, "action": "redact"},
    )
    verdict = apply_output(rules, "10.0.0.1 +49 30 901820 ann@example.com")
    assert verdict.text == "10.0.0.1 +49 30 901820 <EMAIL_1>"
    assert [(hit.rule_id, hit.kind) for hit in verdict.hits] == [("r1", "phone"), ("r2", "email")]


def test_a_block_names_the_rule_and_never_the_text() -> None:
    rules = policy({"kinds": ["card"], "action": "block"}, {"kinds": ["email"], "action": "redact"})
    given = apply_input(rules, ["ann@example.com", "4526018159083012"])
    assert (given.blocked_by, given.texts, given.vault) == ("r0", (), PlaceholderMap())
    said = apply_output(rules, "ann@example.com has 4526018159083012 and more")
    assert (said.blocked_by, said.text) == ("r0", "<EMAIL_1> has ")
    assert [(hit.rule_id, hit.start, hit.end) for hit in said.hits] == [("r1", 0, 15), ("r0", 20, 36)]


def test_what_is_left_of_an_overlap_does_not_get_away() -> None:
    rules = policy({"deny": {"phrases": ["code red"]}, "action": "redact"}, {"kinds": ["email"], "action": "redact"})
    assert apply_output(rules, "code red@example.com").text == "<DENIED_1><EMAIL_1>"
    rules = policy({"deny": {"phrases": ["code red"]}, "action": "block"}, {"kinds": ["email"], "action": "redact"})
    assert apply_output(rules, "a code red@example.com").text == "a "
    most = {"phrases": ["code red@example.co"], "inside_words": True}
    rules = policy({"deny": most, "action": "redact"}, {"kinds": ["email"], "action": "redact"})
    assert apply_output(rules, "code red@example.com").text == "<DENIED_1><EMAIL_1>", "one letter is left"


@pytest.mark.parametrize(
    ("deny", "text", "redacted"),
    [
        ({"phrases": ["Project Titan"]}, "the PROJECT\ntitan, project titans", "the <DENIED_1>, project titans"),
        ({"phrases": ["tan"], "inside_words": True}, "project Titan", "project Ti<DENIED_1>"),
        ({"phrases": ["geheimprojekt", "срочно"]}, "Geheimprojekt СРОЧНО", "<DENIED_1> <DENIED_2>"),
        ({"phrases": ["禁词"]}, "这是禁词吗", "这是<DENIED_1>吗"),
        ({"phrases": ["ab", "abab", "ba"], "inside_words": True}, "xababx", "x<DENIED_1>x"),
        (
            {"patterns": [r"\bproj-\d{2,4}\b", r"x{0,3}"]},
            "PROJ-12 proj-1 xxxx",
            "<DENIED_1> proj-1 <DENIED_2><DENIED_3>",
        ),
        ({"phrases": ["bad"], "patterns": [r"wor[sd]e"]}, "b\u200bad worse", "<DENIED_1> <DENIED_2>"),
    ],
)
def test_deny_lists(deny: dict[str, Any], text: str, redacted: str) -> None:
    assert apply_output(policy({"deny": deny, "action": "redact"}), text).text == redacted


def test_a_text_that_is_too_long_is_blocked() -> None:
    rules = policy({"max_chars": 10, "action": "block"})
    assert apply_input(rules, ["0123456789"]).texts == ("0123456789",)
    assert apply_input(rules, ["0123456789x"]).blocked_by == "r0"
    assert apply_output(rules, "0123456789x").text == "0123456789"


def test_a_rule_about_categories_is_refused_with_what_to_use() -> None:
    for stage in ("input", "output"):
        with pytest.raises(MissingFinder, match="`phrases` or `patterns`, or ask /v1/moderations"):
            policy({"categories": {"violence": 0.5}, "action": "block", "stage": stage}).check()


def test_names_are_found_by_whoever_knows_names() -> None:
    class Ann:
        def find(self, text: str) -> Any:
            place = text.find("Ann")
            return [(place, place + 3, "person")] if place >= 0 else []

    document = {"rules": [{"id": "names", "kinds": ["person"], "action": "redact", "stage": "input"}]}
    rules = Policy(PolicyDocument.model_validate(document), finder=Ann())
    assert apply_input(rules, ["Is Ann here?"]).texts == ("Is <PERSON_1> here?",)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"action": "redact"}, "exactly one"),
        ({"action": "redact", "kinds": ["email"], "max_chars": 3}, "exactly one"),
        ({"action": "redact", "kinds": ["mail"]}, "'email'"),
        ({"action": "redact", "max_chars": 3}, "can only block"),
        ({"action": "block", "kinds": ["email"], "restore": True}, "`restore`"),
        ({"action": "redact", "kinds": ["email"], "restore": True, "stage": "output"}, "`restore`"),
        ({"action": "redact", "kinds": ["person"]}, "`stage` input"),
        ({"action": "redact", "json_schema": {}, "stage": "output"}, "`action`"),
        ({"action": "block", "json_schema": {}}, "`stage` output"),
        ({"action": "block", "languages": ["en"]}, "`stage` input"),
        ({"action": "block", "json_schema": {"type": "objekt"}, "stage": "output"}, "no schema"),
        ({"action": "block", "json_schema": {"$ref": "http://a.example"}, "stage": "output"}, "cannot fetch"),
        ({"action": "flag", "deny": {}}, "needs `phrases` or `patterns`"),
        ({"action": "flag", "deny": {"patterns": ["a", "b.*c"]}}, "`patterns[1]` has matches"),
        ({"action": "flag", "deny": {"patterns": ["a＋"]}}, "`patterns[0]` has matches"),
        ({"action": "flag", "deny": {"patterns": [r"(a)\1"]}}, "back-reference"),
        ({"action": "flag", "deny": {"patterns": ["a{900}b{900}"]}}, "not 1800"),
        ({"action": "flag", "kinds": ["email"], "id": "A b"}, "string_pattern_mismatch"),
        ({"action": "flag", "kinds": ["email"], "then": 1}, "Extra inputs"),
    ],
)
def test_a_document_that_cannot_work_is_refused_with_the_reason(rule: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        PolicyDocument.model_validate({"rules": [{"id": "x", **rule}]})
    assert said in str(refusal.value)


def test_two_rules_of_one_name_are_refused() -> None:
    rule = {"id": "x", "action": "flag", "kinds": ["email"]}
    with pytest.raises(ValidationError, match="called x"):
        PolicyDocument.model_validate({"rules": [rule, rule]})


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ('{"to": "andr\\u00e9@example.com", "a": "\\u00e9"}', '{"to": "<EMAIL_1>", "a": "é"}'),
        ('{"tel": "+49\\u00a030\\u00a0901820\\n"}', '{"tel": "<PHONE_1>\\n"}'),
        ('{"to": "ann\\u0040example.com", "said": "\\"hi\\""}', '{"to": "<EMAIL_1>", "said": "\\"hi\\""}'),
        ('{"to": "ann@example.com", "a": "\\u00e9"}', '{"to": "<EMAIL_1>", "a": "\\u00e9"}'),
        (r"C:\users\u0040x", r"C:\users\u0040x"),
    ],
)
def test_an_input_that_is_json_is_read_as_json(text: str, becomes: str) -> None:
    rules = policy({"kinds": ["email", "phone"], "action": "redact", "stage": "input"})
    assert apply_input(rules, [text]).texts == (becomes,)
    block = policy({"kinds": ["email", "phone"], "action": "block", "stage": "input"})
    assert (apply_input(block, [text]).blocked_by is None) == (text == becomes)


def test_what_json_had_escapes_in_comes_back_without() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEF\n-----END PRIVATE KEY-----"
    given = apply_input(policy(REDACT), [json.dumps({"key": key, "é": 1})])
    assert given.texts[0] == '{"key": "<PRIVATE_KEY_1>", "\\u00e9": 1}'
    mail = apply_input(policy(REDACT), [json.dumps({"to": "andré@example.com"})])
    assert apply_output(policy(REDACT), "to <EMAIL_1>", mail.vault).text == "to andré@example.com"
    both = apply_input(policy(REDACT), [json.dumps({"key": key, "to": "andré@example.com"})])
    assert apply_output(policy(REDACT), "<PRIVATE_KEY_1>", both.vault).text == key
