"""The CPU time that the rules of a policy may take for a text."""

from typing import Any

import pytest

from headrace.policy import budget as budgets
from headrace.policy.budget import Budget, ScanTooLong
from headrace.policy.documents import PolicyDocument
from headrace.policy.policies import Policy, apply_input


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def test_a_budget_has_a_part_for_each_character_and_ends() -> None:
    clock = Clock()
    budget = Budget(1.0, a_character=0.5, clock=clock)
    budget.begin(256)
    clock.at = 129.0
    budget.check()
    budget.end()
    budget.begin(300)  # 150 s more
    clock.at += 150
    budget.check()
    clock.at += 0.5
    with pytest.raises(ScanTooLong) as raised:
        budget.check()
    assert " 279.0 s " in str(raised.value)
    for _ in range(2):
        for _ in range(15):
            budget.check_often()
        with pytest.raises(ScanTooLong):
            budget.check_often()
    budget.end()
    budget.check()


def test_of_short_pieces_every_eighth_is_measured_for_all() -> None:
    clock = Clock()
    budget = Budget(8.0, a_character=0, clock=clock)
    raised = []
    for run in range(1, 25):
        budget.begin(255)
        clock.at += 0.5
        try:
            budget.check()
        except ScanTooLong:
            raised.append(run)
        budget.end()
    assert raised == [24]
    assert (budgets.SECONDS, budgets.SECONDS_A_CHARACTER) == (2.0, 4e-6)
    assert (budgets.OUTPUT_SECONDS, budgets.OUTPUT_SECONDS_A_CHARACTER) == (1.0, 2e-4)


def test_an_output_has_more_time_for_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "Budget", lambda *given, **named: (given, named))
    assert budgets.output_budget() == ((1.0,), {"a_character": 2e-4})


def test_all_texts_of_an_input_share_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    class Slow:
        def find(self, _text: str) -> list[Any]:
            clock.at += 1.5
            return []

    names = {"id": "n", "action": "flag", "stage": "input", "kinds": ["person", "email"]}
    rules = Policy(PolicyDocument.model_validate({"rules": [names]}), finder=Slow())
    text = "ann@example.com " * 20
    assert len(apply_input(rules, [text, text], budget=Budget(3.5, a_character=0, clock=clock)).texts) == 2
    with pytest.raises(ScanTooLong):
        apply_input(rules, [text] * 4, budget=Budget(3.5, a_character=0, clock=clock))
    made: list[Budget] = []
    monkeypatch.setattr(
        "headrace.policy.policies.Budget", lambda: made.append(Budget(9.0, a_character=0, clock=clock)) or made[-1]
    )
    assert len(apply_input(rules, [text] * 6).texts) == 6
    with pytest.raises(ScanTooLong):
        apply_input(rules, [text] * 8)
    assert len(made) == 2, "an input without a budget has one of its own, not one for each text"
