"""The compiled policies of a worker, and the filters that it makes of them: which are kept, and what they let out."""

from typing import Any

import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs

from headrace.features.policy import output_policy, policies
from headrace.features.policy.output_policy import (
    CompiledPolicies,
    OutputRules,
    StreamFilter,
)
from headrace.policy.documents import PolicyDocument
from headrace.policy.outputs import OutputFormat
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy
from headrace.store.payloads.job_payload import PinnedPolicy
from headrace.store.payloads.reasoning import ReasoningFormat
from headrace.store.payloads.sampling_params import GrammarKind, GrammarSpec, Sampling
from headrace.store.streams.checkpoints import ChoiceEnd, ChoiceMark
from headrace.store.streams.stream_log import Frame
from headrace.store.tasks.generate import GenerateInput, GeneratePayload, ToolStyle
from headrace.workers.runs.output_guard import FilteredOutput

ANY: Any = None
MASK = {"id": "words", "deny": {"phrases": ["the mill"]}, "action": "mask", "stage": "output"}
BLOCK, FLAG = {**MASK, "action": "block"}, {**MASK, "action": "flag"}
INPUT = {"id": "mail", "kinds": ["email"], "action": "redact", "stage": "input"}
PINNED = PinnedPolicy(model="*", version=1, counts={"EMAIL": 2})


class Stored:
    """The versions of policies in the registry; it notes which are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *rules: dict[str, Any]) -> None:
        self.read: list[tuple[str, str, int]] = []
        self._document = {"version": 1, "rules": [*rules]}
        monkeypatch.setattr(policies, "get_version", self.get)

    def get(self, _db: Any, tenant_id: str, model: str, version: int) -> dict[str, Any]:
        self.read.append((tenant_id, model, version))
        return self._document


def test_a_version_is_compiled_once_for_its_tenant_and_the_longest_unused_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = Stored(monkeypatch, MASK)
    monkeypatch.setattr(output_policy, "MOST_KEPT", 2)
    cache = CompiledPolicies(ANY)
    one, two = PINNED, PINNED.model_copy(update={"version": 2})
    assert cache.get("t1", one) is cache.get("t1", one)
    assert cache.get("t2", one) is not cache.get("t1", one)
    cache.get("t1", two)
    cache.get("t1", one)
    cache.get("t2", one)
    own = PINNED.model_copy(update={"model": "tiny"})
    cache.get("t2", own)
    first, other = ("t1", "*", 1), ("t2", "*", 1)
    assert stored.read == [first, other, ("t1", "*", 2), other, ("t2", "tiny", 1)]


def payload(**changes: Any) -> GeneratePayload:
    values: dict[str, Any] = {"input": GenerateInput(prompt="x"), "sampling": Sampling(), "policy": PINNED}
    return GeneratePayload(**values | changes)


JSON = Sampling(grammar=GrammarSpec(kind=GrammarKind.JSON_SCHEMA, text="{}"))
REGEX = Sampling(grammar=GrammarSpec(kind=GrammarKind.REGEX, text="[0-9]"))
THINKS = ReasoningFormat(opening="<think>", closing="</think>")


@pytest.mark.parametrize(
    ("changes", "form"),
    [
        ({}, OutputFormat.TEXT),
        ({"sampling": REGEX}, OutputFormat.TEXT),
        ({"sampling": JSON}, OutputFormat.JSON),
        ({"sampling": JSON, "reasoning": THINKS}, OutputFormat.CALLS),
        ({"sampling": JSON, "tool_style": ToolStyle.JSON}, OutputFormat.CALLS),
        ({"reasoning": THINKS}, OutputFormat.TEXT),
    ],
)
def test_the_format_of_an_output_follows_from_its_request(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], form: OutputFormat
) -> None:
    Stored(monkeypatch, MASK)
    rules = CompiledPolicies(ANY).output("t1", PINNED, payload(**changes))
    assert rules is not None
    assert (rules.form, rules.holds_back) == (form, True)


def test_only_rules_for_outputs_make_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Stored(monkeypatch, INPUT)
    cache = CompiledPolicies(ANY)
    assert [cache.output("t1", PINNED, given) for given in (payload(), None)] == [None, None]
    assert len(stored.read) == 1
    Stored(monkeypatch, FLAG)
    flagged = CompiledPolicies(ANY).output("t1", PINNED, None)
    assert flagged is not None
    assert (flagged.holds_back, flagged.form) == (False, OutputFormat.TEXT)


class Given(BaseModel):
    text: str


def test_a_text_of_the_input_that_looks_like_a_placeholder_is_used_for_no_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Stored(monkeypatch, {**INPUT, "stage": "output"})
    rules = CompiledPolicies(ANY).output("t1", PINNED, Given(text="<EMAIL_3> said so"))
    assert rules is not None
    found = rules.apply(["ask ann@example.com", " and bob@example.com now"])
    assert found.text == "ask <EMAIL_4> and <EMAIL_5> now"
    assert [(hit.rule, hit.count) for hit in found.hits] == [("mail", 2)]


def rules(*documents: dict[str, Any]) -> OutputRules:
    policy = Policy(PolicyDocument.model_validate({"rules": [*documents]}))
    return OutputRules(policy, PlaceholderMap(), OutputFormat.TEXT)


def test_a_rule_that_only_flags_leaves_the_pieces_as_they_came() -> None:
    deltas = ["at ", "the ", "mi", "", "ll now"]
    assert rules(FLAG).apply(deltas) == FilteredOutput(
        "at the mill now", ("at ", "the ", "mi", "ll now"), rules(FLAG).apply(deltas).hits
    )
    assert len(rules(FLAG).apply(deltas).hits) == 1
    assert rules(MASK).apply(deltas).text == "at *** **** now"
    blocked = rules(BLOCK).apply(deltas)
    assert (blocked.blocked_by, "mill" in blocked.text) == ("words", False)


def test_fields_are_filtered_in_depth_and_only_those_that_are_named() -> None:
    output = {"label": "the mill", "about": {"text": ["by the mill", 3]}, "score": 0.5}
    everything = rules(MASK).apply_to_fields(output, None)
    assert everything.output == {"label": "*** ****", "about": {"text": ["by *** ****", 3]}, "score": 0.5}
    assert [(hit.rule, hit.count) for hit in everything.hits] == [("words", 2)]
    some = rules(MASK).apply_to_fields(output, ["about"])
    assert (some.output["label"], some.output["about"]["text"][0]) == ("the mill", "by *** ****")
    assert [hit.count for hit in some.hits] == [1]
    assert rules(FLAG).apply_to_fields(output, None).output == output
    assert rules(BLOCK).apply_to_fields(output, None).blocked_by == "words"
    assert rules(BLOCK).apply_to_fields(output, ["score"]).blocked_by is None
    assert rules(BLOCK).apply_to_fields({"first": "is fine", "second": "the mill"}, None).blocked_by == "words"


def test_each_use_of_the_rules_numbers_its_placeholders_from_the_same_one() -> None:
    one = rules({"id": "mail", "kinds": ["email"], "action": "redact", "stage": "output"})
    for value in ("ann@example.com", "bob@example.com"):
        assert one.apply_to_fields({"text": value}, None).output == {"text": "<EMAIL_1>"}
        assert one.apply([value]).text == "<EMAIL_1>"


def gate(*documents: dict[str, Any]) -> tuple[StreamFilter, list[str]]:
    told: list[str] = []
    return StreamFilter(rules(*documents).guard, lambda: told.append("blocked")), told


def test_a_stream_ends_at_a_block_and_says_so_once() -> None:
    stream, told = gate(BLOCK)
    passed = [stream.passed(Frame("job_1", 1, seq, text)) for seq, text in enumerate(("Hi. ", "the mill", " x"), 1)]
    assert [frame and frame.text for frame in passed] == ["Hi. ", None, None]
    assert told == ["blocked"]


def test_the_end_of_a_choice_shows_the_rest_of_its_text_and_has_a_frame() -> None:
    stream, _ = gate(MASK)
    end = ChoiceEnd("stop", 1, 2)
    given = [
        ("at the mi", ChoiceMark(0)),
        ("by the", ChoiceMark(1)),
        ("", ChoiceMark(1, end)),
        ("ll", ChoiceMark(0, end)),
    ]
    passed = [
        stream.passed(Frame("job_1", 1, seq, text, (seq,), mark=mark)) for seq, (text, mark) in enumerate(given, 1)
    ]
    shown = [frame for frame in passed if frame is not None]
    texts = {
        choice: "".join(one.text or "" for one in shown if one.mark and one.mark.choice == choice) for choice in (0, 1)
    }
    assert texts == {0: "at *** ****", 1: "by the"}
    assert [one.seq for one in shown] == [*range(1, len(shown) + 1)]
    assert [one.mark for one in shown if one.mark and one.mark.end] == [ChoiceMark(1, end), ChoiceMark(0, end)]
    assert {one.token_ids for one in shown} == {()}


def test_a_guard_that_breaks_shows_nothing_more_and_quotes_nothing() -> None:
    class Broken:
        blocked_by = None

        def feed(self, text: str) -> str:
            raise ValueError(f"secret {text}")

    broken: Any = Broken()
    stream = StreamFilter(lambda: broken, lambda: None)
    with capture_logs() as logs:
        assert [stream.passed(Frame("job_1", 1, seq, "x")) for seq in (1, 2)] == [None, None]
    assert logs == [
        {"event": "gate_failed", "log_level": "error", "job_id": "job_1", "epoch": 1, "error": "ValueError"}
    ]
