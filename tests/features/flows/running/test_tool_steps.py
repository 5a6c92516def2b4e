"""The steps that an answer with calls brings, as plain data: what each is given, counts, needs and asks for."""

import json
from dataclasses import replace
from typing import Any

import pytest

from headrace.features.flows.running.call_arguments import arguments_of, fault_of
from headrace.features.flows.running.tool_steps import OVER_LIMIT, after_answer
from headrace.features.flows.store.added import Added, AddedStep, AskedApproval
from headrace.store.jobs.claims import Claim, Finish
from headrace.store.payloads.step_payload import FAULT, NUMBERED_FROM, REFERENCES, SEARCH, THEN
from headrace.store.schema.job_states import JobState
from tests.refusals import Naming
from tests.workers.runs.test_outcome import CLAIM

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Rome?"}],
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": CITY}}],
    "tool_choice": "required",
}
ANSWER = replace(
    CLAIM,
    task="generate",
    input_tokens=40,
    step="answer",
    parent_id="job_0",
    payload={"input": ASKED, "sampling": {"max_tokens": 100}, REFERENCES: {"mark": "first.output.text"}},
)
MAKES = {"kind": "tools", "model": "tools", "version": 7, "calls_left": 3}


def call(number: int, name: str = "weather", arguments: str = '{"city": "Rome"}') -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def ended(*calls: dict[str, Any], **output: Any) -> Finish:
    said = {"text": "call", "finish_reason": "tool_calls", "tool_calls": calls, **output}
    return Finish("job_1", 4, JobState.SUCCEEDED, said, None, {"output_tokens": 12})


def added(claim: Claim, then: dict[str, Any], finish: Finish) -> Added:
    found = after_answer(claim, then, finish).added
    assert found is not None
    return found


def same(step: AddedStep, **expected: Any) -> None:
    """Check every field of a step; its id is random."""
    assert step == AddedStep(**expected, id=step.id)


def test_each_call_is_a_step_and_the_next_answer_waits_for_all() -> None:
    broken = call(1, arguments='{"city": ')
    found = added(ANSWER, MAKES, ended(call(0), broken, content="Let me see."))
    first, second, answer = found.steps
    assert found.answer == "answer:3"
    for name, step, one in (("answer:1", first, call(0)), ("answer:2", second, broken)):
        function = one["function"]
        same(
            step,
            name=name,
            task="call_tool",
            model="tools",
            model_version=7,
            payload={"input": {"tool": "weather", "arguments": function["arguments"]}},
            input_tokens=1,
            cost_tokens=1,
            needs=("answer",),
        )
    marks = answer.payload[REFERENCES]
    assert [*marks.values()] == ["first.output.text", "answer:1.output.text", "answer:2.output.text"]
    _, one, two = marks
    read = call(1, arguments="{}")
    turns = [
        {"role": "assistant", "tool_calls": [call(0), read], "content": "Let me see."},
        {"role": "tool", "tool_call_id": "call_0", "content": one},
        {"role": "tool", "tool_call_id": "call_1", "content": two},
    ]
    same(
        answer,
        name="answer:3",
        task="generate",
        model="fake",
        model_version=1,
        payload={
            "input": {"messages": [*ASKED["messages"], *turns], "tools": ASKED["tools"]},
            "sampling": {"max_tokens": 100},
            REFERENCES: marks,
            THEN: {**MAKES, "calls_left": 1},
        },
        input_tokens=40 + 12 + 2 * 256,
        cost_tokens=40 + 12 + 2 * 256 + 100,
        needs=("answer:1", "answer:2"),
    )
    assert ANSWER.payload[REFERENCES] == {"mark": "first.output.text"}, "the claim is as it was"


def test_calls_over_the_limit_are_not_made_and_the_last_answer_is_in_words() -> None:
    claim = replace(ANSWER, payload={"input": ASKED})
    *made, answer = added(claim, {**MAKES, "calls_left": 2}, ended(call(0), call(1), call(2))).steps
    assert [step.name for step in made] == ["answer:1", "answer:2"]
    given = answer.payload["input"]
    assert (given["tool_choice"], given["messages"][-1]) == (
        "none",
        {"role": "tool", "tool_call_id": "call_2", "content": OVER_LIMIT},
    )
    assert "content" not in given["messages"][1]
    assert THEN not in answer.payload
    assert answer.cost_tokens - answer.input_tokens == 256, "without a limit in the request"
    exact = added(claim, {**MAKES, "calls_left": 3}, ended(call(0), call(1), call(2))).steps[-1]
    assert (exact.payload["input"]["tool_choice"], THEN in exact.payload) == ("none", False)


@pytest.mark.parametrize(
    ("claim", "calls", "left"),
    [(ANSWER, (), 3), (ANSWER, (call(0),), 0), (replace(ANSWER, step=None), (call(0),), 3)],
)
def test_nothing_is_added_without_a_call_that_may_be_made(claim: Claim, calls: Any, left: int) -> None:
    finish = ended(*calls)
    assert after_answer(claim, {**MAKES, "calls_left": left}, finish) is finish
    assert after_answer(claim, {**MAKES, "calls_left": 3}, replace(finish, output=None)).added is None


ASKS = {"names": ["weather"], "within_s": 60.0}


def test_a_call_that_fits_waits_for_its_approval_and_one_that_cannot_be_made_has_its_fault() -> None:
    unfit = call(1, arguments='{"city": 3}')
    free = call(2, "other", "{}")
    finish = after_answer(ANSWER, {**MAKES, "approval": ASKS}, ended(call(0), unfit, free))
    assert finish.added is not None
    fault = Naming("at city", '"string"')
    assert (finish.output or {})["tool_calls"] == [call(0), {**unfit, FAULT: fault}, free]
    asked, refused, made, _ = finish.added.steps
    assert asked.approval == AskedApproval("weather", 60.0, id=asked.approval.id if asked.approval else "")
    assert [step.approval for step in (refused, made)] == [None, None]
    assert refused.payload["input"] == {
        "tool": "weather",
        "arguments": '{"city": 3}',
        "refusal": fault,
        "is_fault": True,
    }
    assert [step.payload["input"].keys() for step in (asked, made)] == [{"tool", "arguments"}] * 2


def test_a_job_whose_caller_decides_ends_with_the_calls() -> None:
    then = {**MAKES, "approval": {**ASKS, "ends": True}}
    assert after_answer(ANSWER, then, ended(call(0))).added is None
    assert after_answer(ANSWER, then, ended(call(0, "other", "{}"))).added is not None, "nobody is asked"
    assert after_answer(ANSWER, then, ended(call(0, arguments="{"))).added is not None, "it cannot be made"
    beyond = ended(call(0, "other", "{}"), call(1))
    assert after_answer(ANSWER, {**then, "calls_left": 1}, beyond).added is not None, "the second is not made"
    assert after_answer(ANSWER, {**MAKES, "approval": ASKS}, ended(call(0))).added is not None


HOW = {"model": "vectors", "version": 2, "fields": {"dimensions": 8}, "retrieval": {"max_num_results": 5}}


def search(number: int, query: Any) -> dict[str, Any]:
    return call(number, "file_search", json.dumps({"query": query}))


def test_a_search_is_a_step_of_the_model_of_vectors_and_its_passages_are_numbered_on() -> None:
    then = {**MAKES, SEARCH: HOW, "found": 10, "approval": {"names": ["file_search"], "within_s": 1.0}}
    first, second, answer = added(ANSWER, then, ended(search(0, "the mill"), search(1, "x" * 1000))).steps
    same(
        first,
        name="answer:1",
        task="embed",
        model="vectors",
        model_version=2,
        payload={"input": {"texts": ["the mill"]}, "dimensions": 8, SEARCH: HOW["retrieval"], NUMBERED_FROM: 11},
        input_tokens=3,
        cost_tokens=0,
        needs=("answer",),
    )
    assert second.payload[NUMBERED_FROM] == 16
    assert answer.payload[THEN] == {**then, "calls_left": 1, "found": 20}
    assert then["found"] == 10, "the stored one is as it was"


@pytest.mark.parametrize("query", ["", "  ", "a\x00b", "x" * 1001, None])
def test_a_query_that_does_not_fit_is_a_call_whose_result_says_so(query: Any) -> None:
    one = search(0, query)
    (step, _) = added(ANSWER, {**MAKES, SEARCH: HOW}, ended(one)).steps
    assert (step.task, step.payload) == (
        "call_tool",
        {"input": {"tool": "file_search", "arguments": one["function"]["arguments"]}},
    )


def test_the_arguments_of_a_call_are_read_or_their_first_fault_is_said() -> None:
    assert arguments_of('{"city": "Rome"}', CITY) == {"city": "Rome"}
    assert arguments_of("", {}) == {}
    for text, fault in (
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "JSON object"),
        ("{}", '"city"'),
    ):
        assert fault_of(text, CITY) == Naming(fault)
        with pytest.raises(ValueError, match=fault):
            arguments_of(text, CITY)
    assert fault_of('{"city": "Rome"}', CITY) is None
    long = fault_of('{"city": 1}', {"properties": {"city": {"const": "x" * 5000}}})
    assert long is not None
    assert len(long) == 1000
