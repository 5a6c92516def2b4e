"""The check of a job's steps, and references to values that are not there yet. No I/O."""

from typing import Any

import pytest

from headrace.features.flows.pipeline import Pipeline, check_inputs
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.references import look_up, references, replaced
from headrace.store.payloads.step_payload import Marks, with_references, with_texts
from headrace.store.tasks.flow import FlowStepBody, check_steps


def step(name: str, *needs: str, **changes: Any) -> FlowStepBody:
    body = {"name": name, "model": "tiny", "input": {"prompt": "hello"}, "needs": needs} | changes
    return FlowStepBody.model_validate(body)


def of(path: str) -> dict[str, Any]:
    return {"input": {"prompt": {"$from": path}}}


class TestPlan:
    def test_steps_come_after_those_that_they_need(self) -> None:
        order, answer = check_steps([step("c", "a", "b"), step("b", "a"), step("a")], 16)
        assert ([one.name for one in order], answer.name) == (["a", "b", "c"], "c")

    def test_an_output_may_be_referred_to_through_other_steps(self) -> None:
        check_steps([step("a"), step("b", "a"), step("c", "b", **of("a.output.text"))], 16)

    @pytest.mark.parametrize(
        ("task", "path"),
        [
            ("classify", "a.output.classifications.0.0.label"),
            ("classify", "a.output.policy.0.rule"),
            ("generate", "a.output.choices.1.text"),
            ("generate", "a.output"),
            ("call_tool", "a.output.status"),
        ],
    )
    def test_a_reference_may_name_any_field_of_the_outputs_of_the_task(self, task: str, path: str) -> None:
        check_steps([step("a", task=task), step("b", "a", **of(path))], 16)

    def test_of_several_last_steps_the_marked_one_has_the_answer(self) -> None:
        assert check_steps([step("a", stream=True), step("b")], 16)[1].name == "a"

    @pytest.mark.parametrize(
        ("steps", "place", "why"),
        [
            ([step("a"), step("a")], "steps[1].name", "`a` is taken"),
            ([step("input")], "steps[0].name", "`input` is taken"),
            ([step("a", "b")], "steps[0].needs[0]", "no step `b`"),
            ([step("a", "b"), step("b", "a"), step("c")], "steps", "a, b"),
            ([step("a"), step("b"), step("c", "a")], "steps", r"\(b, c\): .*`stream`"),
            ([step("a"), step("b", stream=True), step("c", stream=True)], "steps", "`stream` .*one step"),
            (
                [step("a", task="classify"), step("b", "a", **of("a.output.label.0"))],
                "steps[1].input",
                r"`a\.output\.label\.0`.*classify .*classifications, labels, policy, truncated",
            ),
            ([step("a", stream=True), step("b", "a")], "steps", "`stream`"),
            ([step("a"), step("b", **of("a.output.text"), stream=True)], "steps[1].input", "`a`.*`needs`"),
            ([step("a"), step("b", "a", **of("a.text"))], "steps[1].input", "`output`"),
            ([step("a", **of("a..b"))], "steps[0].input", "reference is"),
            ([step("a", task="paint")], "steps[0].task", "task is one"),
            ([step("a", priority=1)], "steps[0].priority", "beside `steps`"),
            ([step("a", top_k=1)], "steps[0]", "'top_k'"),
            ([step("a"), step("b", "a"), step("c", "b")], "steps", "at most 2"),
        ],
    )
    def test_a_mistake_is_named_with_its_place(self, steps: list[FlowStepBody], place: str, why: str) -> None:
        with pytest.raises(InvalidRequest, match=why) as refused:
            check_steps(steps, 2 if "at most" in why else 16)
        assert refused.value.param == place

    def test_steps_without_needs_keep_their_order(self) -> None:
        order, answer = check_steps([step("c"), step("a"), step("b", "c", "a")], 3)
        assert ([one.name for one in order], answer.name) == (["c", "a", "b"], "b")


class TestPipelines:
    def test_a_pipeline_declares_the_inputs_that_its_steps_refer_to(self) -> None:
        refers = step("a", **of("input.text.0"))
        schema = {"type": "object", "properties": {"text": {}}}
        for good in ({}, {"properties": {"text": {}}}, schema, schema | {"type": ["object", "null"]}):
            check_inputs(Pipeline(input_schema=good, steps=(refers,)))
        for bad, said, param in (
            (
                {"type": ["string"]},
                '`input_schema`: .*`"type": "object"`',
                "input_schema",
            ),
            (
                {"properties": {"name": {}}},
                r"`input\.text`.*`input_schema`",
                "steps[1].input",
            ),
        ):
            with pytest.raises(InvalidRequest, match=said) as refused:
                check_inputs(Pipeline(input_schema=bad, steps=(step("first"), refers)))
            assert refused.value.param == param

    def test_a_digest_is_of_what_is_shown(self) -> None:
        made = Pipeline(steps=(step("a"),))
        assert made.document == {"steps": [{"name": "a", "model": "tiny", "input": {"prompt": "hello"}}]}
        assert made.content_digest == Pipeline(description="", steps=(step("a"),)).content_digest
        assert made.content_digest != Pipeline(steps=(step("a", stream=True),)).content_digest


class TestReferences:
    def test_a_path_leads_through_objects_and_lists(self) -> None:
        values = {"c": {"output": {"labels": ["a", "b"], "best": {"score": 0.5}}}}
        assert look_up(values, "c.output.labels.1") == "b"
        assert look_up(values, "c.output.best") == '{"score":0.5}'

    @pytest.mark.parametrize("path", ["c.output.labels.2", "c.output.labels.x", "c.output.nothing", "c.output.null"])
    def test_what_is_not_there_is_named(self, path: str) -> None:
        with pytest.raises(InvalidRequest, match=f"`{path}`"):
            look_up({"c": {"output": {"labels": ["a", "b"], "null": None}}}, path)

    def test_marks_become_texts_that_are_not_read_again(self) -> None:
        marks, source = Marks(), {"messages": [{"content": {"$from": "a.output.text"}}, {"content": "plain"}]}
        assert list(references(source)) == ["a.output.text"]
        marked = replaced(source, marks.mark)
        (mark,) = marks.paths
        assert with_references(marked, lambda path: {"$from": path}, marks.paths) == source
        other = Marks().mark("b.output.text")
        filled = with_texts(marked, {mark: f"{other} {{{{ x }}}}"})
        assert filled == {"messages": [{"content": f"{other} {{{{ x }}}}"}, {"content": "plain"}]}
