"""A small part of ``python -m tests.policy.splits --full``."""

import pytest

from headrace.policy.outputs import OutputFormat
from headrace.policy.streaming import GuardedText
from tests.policy.evaluation import Case, second
from tests.policy.splits import guarding, leak, run

MARKED = [case for case in second() if case.marked and len(case.text) < 120]


def test_nothing_leaks_wherever_a_stream_is_cut() -> None:
    found = list(run(MARKED[::201], seed=1, most=3))
    assert len(found) >= 10
    assert [one for one in found if one is not None] == []


def test_a_guard_that_holds_nothing_back_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case: Case = MARKED[0]
    values = [case.text[start:end] for start, end, _ in case.marked]
    policy = guarding("redact")
    assert leak(policy, case.text, values, OutputFormat.TEXT, iter([(len(case.text) // 2,)])) is None
    monkeypatch.setattr(GuardedText, "feed", lambda self, text: self.finish(text))
    middle = case.text.index(values[0]) + len(values[0]) // 2
    assert "has left" in (leak(policy, case.text, values, OutputFormat.TEXT, iter([(middle,)])) or "")
