"""Pipelines, and the rows and payloads of a flow and its steps. No services."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.flows.pipelines import at_place, of_pipeline, used_pipeline, version_of
from headrace.features.flows.prepared_step import (
    PreparedStep,
    filled_step,
    flow_payload,
    flow_row,
    new_step,
    unprepared_payload,
)
from headrace.producer_api.submission.draft_job import Origin
from headrace.producer_api.submission.prompt_preparation import PromptTemplates
from headrace.store.errors import InvalidRequest, NotFound, NoWorker
from headrace.store.payloads.job_payload import PinnedPolicy
from headrace.store.payloads.prompt_reference import PromptUse, TemplatePlace
from headrace.store.payloads.step_payload import Marks
from headrace.store.registry.prompt_templates import PromptVersion
from headrace.store.settings import Settings
from headrace.store.tasks.flow import FlowRequest, FlowStepBody, PipelineRequest
from tests.producer_api.submission.steps.making import AT, PRINCIPAL, VERSION, request, step
from tests.refusals import Naming, refusal

STORED = PromptVersion(
    "pipe_1",
    "mine",
    2,
    {
        "input_schema": {"type": "object", "properties": {"a": {"type": "string"}}},
        "steps": [{"name": "only", "model": "tiny", "input": {"prompt": {"$from": "input.a"}}}],
    },
    AT,
)


def test_a_job_of_a_pipeline_has_its_steps_and_the_caller_s_terms() -> None:
    found = version_of(STORED)
    assert (found.pinned, found.use.name, found.use.version) == ("pipe_1@2", "mine", 2)
    sent = PipelineRequest.model_validate(
        {"pipeline": "mine", "input": {"a": "x"}, "priority": 1, "user": "u", "metadata": {"k": "v"}, "deadline_ms": 5}
    )
    used = used_pipeline(sent, found, {"tiny": "tiny@3"})
    assert (used.asked, used.version, used.models) == (sent, found.use, {"tiny": "tiny@3"})
    made = used.request
    assert (made.input, made.steps, made.task) == ({"a": "x"}, found.content.steps, "flow")
    assert (made.priority, made.user, made.metadata, made.deadline_ms) == (1, "u", {"k": "v"}, 5)
    assert used.columns == {"rollout_id": None, "pipeline_version": 2}
    named = {"pipeline": found.use.model_dump(mode="json")}
    assert used.payload_fields(has_policy=False) == named
    mirrored = replace(used, is_mirrored=True)
    assert mirrored.payload_fields(has_policy=False) == named | {"mirrored_input": {"a": "x"}}
    assert mirrored.payload_fields(has_policy=True) == named
    wrong = PipelineRequest.model_validate({"pipeline": "mine", "input": {"a": 5}})
    kind, message, code, param = refusal(used_pipeline, wrong, found)
    assert "`input.a`" in message
    assert (kind, code, param) == (InvalidRequest, "invalid_value", "input.a")


@pytest.mark.parametrize(
    ("param", "expected"),
    [(None, "steps[1]"), ("input", "steps[1].input"), ("steps[1].model", "steps[1].model")],
)
def test_an_error_of_a_step_names_its_place(param: str | None, expected: str) -> None:
    with pytest.raises(InvalidRequest) as caught, at_place("steps[1]"):
        raise InvalidRequest("m", param=param)
    assert (caught.value.param, caught.value.message) == (expected, "m")


@pytest.mark.parametrize(
    ("param", "expected"),
    [
        ("steps[1].model", (Naming("steps[1].model", "m"), "pipeline")),
        ("input", ("m", "input")),
        (None, ("m", None)),
    ],
)
def test_an_error_of_a_pipeline_s_step_is_the_pipeline_s(
    param: str | None, expected: tuple[object, str | None]
) -> None:
    for kind in (NotFound, NoWorker):
        with pytest.raises(kind) as caught, of_pipeline():
            raise kind("m", param=param)
        assert (caught.value.message, caught.value.param) == expected


def prepared(body: FlowStepBody, **fields: Any) -> PreparedStep:
    made = PreparedStep(body, "steps[0]", VERSION, request(body.input, **body.own_fields), Marks())
    for name, value in fields.items():
        setattr(made, name, value)
    return made


FLOW_TERMS = {
    "priority": 1,
    "service_class": "batch",
    "metadata": {"k": "v"},
    "webhook": {"url": "https://example.com/"},
    "max_attempts": 2,
}
KEPT_BY_STEPS = {
    "tenant_id": "acme",
    "service_class": "batch",
    "priority": 1,
    "max_attempts": 2,
    "deadline_s": 1.5,
    "api_key_id": "key_1",
    "project_id": "project",
    "user_id": "u",
}
FLOW_ROW = KEPT_BY_STEPS | {
    "task": "flow",
    "model": "tiny",
    "model_version": 3,
    "queue": "cache",
    "payload": {},
    "input_tokens": 0,
    "cost_tokens": 0,
    "metadata": {"k": "v"},
    "webhook": {"url": "https://example.com/"},
    "announce": False,
}
STEP_ROW = KEPT_BY_STEPS | {
    "task": "generate",
    "model": "tiny",
    "model_version": 3,
    "model_digest": "f00d",
    "queue": "cache",
    "payload": {"p": 1},
    "input_tokens": 5,
    "cost_tokens": 8,
    "metadata": {},
    "webhook": {"events": []},
    "step": "a",
    "needs": ("b",),
}


def columns(row: object, expected: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in expected}


def test_a_flow_and_its_steps_are_rows_with_what_each_costs() -> None:
    settings = Settings(database_url="postgresql://x/y", redis_url="redis://x")
    settings = settings.model_copy(update={"default_deadline_s": 77.0, "default_max_attempts": 9})
    plain = {"steps": [step().model_dump()]}
    asked = FlowRequest.model_validate(plain | FLOW_TERMS | {"user": "u", "deadline_ms": 1500})
    last = prepared(step(needs=("b",)), payload={"p": 1}, input_tokens=5, max_tokens=3)
    origin = Origin("route", None, "", False, 1, "project")
    row = flow_row(settings, PRINCIPAL, asked, origin, last)
    assert columns(row, FLOW_ROW) == FLOW_ROW
    usual = flow_row(settings, PRINCIPAL, FlowRequest.model_validate(plain), origin, last)
    assert (usual.deadline_s, usual.max_attempts, usual.webhook) == (77.0, 9, None)
    made = new_step(row, last)
    of_step = STEP_ROW | {"parent_id": row.id}
    assert columns(made, of_step) == of_step
    assert made.id != row.id
    assert new_step(row, prepared(step())).queue == "tiny@3", "it waits for no other step"


def test_a_flow_keeps_its_steps_as_they_can_be_sent_again() -> None:
    marks = Marks()
    mark = marks.mark("b.output.text")
    body = step(
        source={"messages": [{"role": "user", "content": mark}]}, sampling={"max_tokens": 4}, needs=("b",), stream=True
    )
    first, second = prepared(step("b", {"prompt": "x"})), prepared(body, marks=marks, form={"policy": {"p": 1}})
    asked: Any = SimpleNamespace(steps=(first.body, body))
    payload = flow_payload(asked, [first, second], second)
    assert payload["policy"] == {"p": 1}
    plain, referring = payload["steps"]
    assert plain == {
        "name": "b",
        "task": "generate",
        "model": "tiny@3",
        "input": {"prompt": "x"},
        "needs": [],
        "stream": False,
    }
    assert (referring["name"], referring["needs"], referring["stream"]) == ("a", ["b"], True)
    assert referring["input"]["messages"][0]["content"] == {"$from": "b.output.text"}
    assert referring["sampling"]["max_tokens"] == 4
    assert second.referred == ["b"]
    kept = unprepared_payload(second, second.request)
    assert (kept["references"], "policy" in kept, "then" in kept, "template" in kept) == (
        {mark: "b.output.text"},
        False,
        False,
        False,
    )
    use = PromptUse(id="p", name="n", version=1, digest="d")
    second.policy, second.then = PinnedPolicy(model="", version=1), {"kind": "tools", "calls_left": 1}
    kept = unprepared_payload(second, request().filled_in(request().input, use, TemplatePlace(2, 1)))
    assert (kept["policy"], kept["then"]) == ({"model": "", "version": 1, "flagged": [], "counts": {}}, second.then)
    assert (kept["template"], kept["template_place"]) == (use.model_dump(), {"head": 2, "tail": 1})


def test_a_template_of_a_step_is_filled_in_unless_it_refers_to_outputs() -> None:
    asked = request({"template": {"id": "guide"}})
    templates = PromptTemplates()
    templates.fill = lambda tenant_id, sent: f"filled for {tenant_id}"  # type: ignore[assignment,method-assign,return-value]

    def filled(sent: Any = asked, body: FlowStepBody | None = None, marks: Marks | None = None, **named: Any) -> Any:
        given = {"has_input": True} | named
        return filled_step(templates, "acme", body or step(), sent, marks or Marks(), **given)

    assert filled() == "filled for acme"
    assert filled(has_input=False) is asked
    plain = request({"prompt": "hello"})
    assert filled(plain) is plain
    use = PromptUse(id="p", name="n", version=1, digest="d")
    before = filled(plain, step().made_from(use, TemplatePlace(2)))
    assert (before.prompt_use, before.template_place) == (use, TemplatePlace(2))
    marks = Marks()
    marks.mark("input.text")
    assert filled(marks=marks) == "filled for acme"
    marks.mark("b.output.text")
    assert refusal(filled, marks=marks)[::3] == (InvalidRequest, "input.template")
