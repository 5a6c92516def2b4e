"""Steps, templates, pipelines and policies of a submission, as values go in and out. No services."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from policy.documents import PolicyDocument
from policy.placeholders import PlaceholderMap
from policy.policies import Policy
from producer_api.submission import input_policy, retrieval_steps, tool_steps
from producer_api.submission.draft_job import Origin
from producer_api.submission.input_policy import (
    ActivePolicy,
    PolicyOutcome,
    applied,
    changed_by,
    check_fixed,
    check_items,
    check_pipeline_text,
    check_template,
    guarded,
    pinned,
    refuse_images,
)
from producer_api.submission.pipelines import at_place, of_pipeline, used_pipeline, version_of
from producer_api.submission.prepared_step import PreparedStep, flow_payload, flow_row, new_step, unprepared_payload
from producer_api.submission.retrieval_steps import as_flow, as_one, retrieval_of, search_step
from producer_api.submission.template_filling import combined, fill_version, messages_of
from producer_api.submission.tool_steps import (
    check_tools,
    server_tools_of,
    with_answered_calls,
    with_tools,
    without_tools,
)
from prompts.prompt_template import FilledTemplate
from store.errors import Conflict, HeadraceError, InvalidRequest, NotFound, NoWorker, Unavailable
from store.jobs.responses import AnsweredCall, NewResponse
from store.payloads.job_payload import PinnedPolicy, PolicyHit
from store.payloads.prompt_reference import PromptUse, TemplatePlace
from store.payloads.retrieval import Retrieval
from store.payloads.step_payload import Marks
from store.payloads.tool_definition import HttpTool
from store.registry.models import ModelVersion
from store.registry.policies import StoredPolicy
from store.registry.prompt_templates import PromptVersion
from store.settings import Settings
from store.tasks.flow import FlowRequest, FlowStepBody, PipelineRequest
from store.tasks.generate import GenerateInput, GenerateRequest
from store.tenants.api_keys import Principal
from store.tools.tools import StoredTool

AT = datetime(2026, 11, 29, tzinfo=UTC)
VERSION = ModelVersion("tiny", 3, "generate", "fake", "fake:tiny", "f00d", "float32", 512, {}, AT, None)
CALLER = replace(VERSION, model="tools", version=1, task="call_tool")
PRINCIPAL = Principal("acme", "key_1", frozenset())
QUESTION = {"role": "user", "content": "What?"}


def told(call: Any, *arguments: Any, **named: Any) -> tuple[type, str, str, str | None]:
    """Return the error that a call raises."""
    with pytest.raises(HeadraceError) as caught:
        call(*arguments, **named)
    error = caught.value
    return type(error), error.message, error.code, error.param


def request(source: dict[str, Any] | None = None, **fields: Any) -> GenerateRequest:
    return GenerateRequest.model_validate({"model": "tiny", "input": source or {"messages": [QUESTION]}} | fields)


def step(name: str = "a", source: dict[str, Any] | None = None, **fields: Any) -> FlowStepBody:
    given = {"name": name, "model": "tiny", "input": source or {"messages": [QUESTION]}}
    return FlowStepBody.model_validate(given | fields)


# The tenant's policy.


def policy(*rules: dict[str, Any]) -> Policy:
    return Policy(PolicyDocument.model_validate({"version": 1, "rules": [*rules]}))


REDACT = policy({"id": "mail", "kinds": ["email"], "action": "redact"})
INPUT_ONLY = policy({"id": "mail", "kinds": ["email"], "action": "redact", "stage": "input"})
FLAG = policy({"id": "mail", "kinds": ["email"], "action": "flag", "stage": "input"})
BLOCK = policy({"id": "mail", "kinds": ["email"], "action": "block"})
OUTPUTS = policy({"id": "mail", "kinds": ["email"], "action": "redact", "stage": "output"})
MAIL, OTHER = "ann@example.com", "bob@example.com"
REFUSED = "the policy's rule mail does not let this input in"


def test_every_text_of_a_request_is_replaced_and_no_name() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": f'{{"to": "{MAIL}"}}'}}
    result = {"role": "tool", "tool_call_id": "call_1", "content": OTHER}
    turns = [
        {"role": "user", "content": f"to {MAIL}"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        result,
    ]
    sent = request({"messages": turns}, metadata={MAIL: f"for {OTHER}", "k": "v"})
    done = applied(REDACT, sent)
    made: Any = done.request
    first, second, third = (one.model_dump(mode="json", exclude_none=True) for one in made.input.messages)
    assert first["content"] == "to <EMAIL_1>"
    assert second["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"to": "<EMAIL_1>"}'}
    assert (third["content"], third["tool_call_id"]) == ("<EMAIL_2>", "call_1")
    assert made.metadata == {"<EMAIL_1>": "for <EMAIL_2>", "k": "v"}
    assert (done.actions, done.flagged, done.vault.counts) == ({"redact": 5}, (), {"EMAIL": 2})
    assert sent.metadata == {MAIL: f"for {OTHER}", "k": "v"}, "the request itself is as it was"


def test_what_a_response_shows_again_is_replaced_too() -> None:
    shown = {
        "instructions": MAIL,
        "user": MAIL,
        "text": {"format": {"type": "text"}},
        "tool_choice": {"type": "function", "name": "f"},
        "temperature": 1,
    }
    items = [{"id": "msg_1", "role": "user", "content": MAIL}]
    response = NewResponse(None, True, False, items, shown)
    done = applied(REDACT, request({"messages": [{"role": "user", "content": MAIL}]}), response)
    assert done.response is not None
    assert done.response.input == [{"id": "msg_1", "role": "user", "content": "<EMAIL_1>"}]
    assert done.response.request == shown | {"instructions": "<EMAIL_1>", "user": "<EMAIL_1>"}
    before = PlaceholderMap()
    again = applied(
        REDACT, request({"prompt": OTHER}), None, applied(REDACT, request({"prompt": MAIL}), None, before).vault
    )
    source: Any = again.request.input
    assert source.prompt == "<EMAIL_2>", "numbers go on behind those of the response before"


def test_flags_are_told_by_rule_with_their_number() -> None:
    done = applied(FLAG, request({"prompt": f"{MAIL} {OTHER}"}))
    assert (done.flagged, done.actions) == (
        (PolicyHit(rule="mail", kind="email", action="flag", count=2),),
        {"flag": 2},
    )
    source: Any = done.request.input
    assert source.prompt == f"{MAIL} {OTHER}"


@pytest.mark.parametrize(
    ("rules", "sent", "error"),
    [
        (BLOCK, request({"prompt": MAIL}), (REFUSED, "policy_blocked_input", "input")),
        (BLOCK, request({"prompt": "x"}, metadata={"a": MAIL}), (REFUSED, "policy_blocked_input", "input")),
        (
            REDACT,
            request({"token_ids": [1]}),
            ("token ids cannot be checked by this tenant's policy: send text", "invalid_value", "input"),
        ),
        (
            REDACT,
            request({"prompts": [[1], [2]]}),
            ("token ids cannot be checked by this tenant's policy: send text", "invalid_value", "input"),
        ),
        (REDACT, request({"prompt": "x"}, sampling={"stop": [MAIL]}), (REFUSED, "policy_blocked_input", "input")),
        (
            OUTPUTS,
            request({"prompt": "x"}, sampling={"logprobs": 1}),
            (
                "`sampling.logprobs` would tell what this tenant's policy takes out of answers: leave it out",
                "unsupported_parameter",
                "sampling.logprobs",
            ),
        ),
    ],
)
def test_what_a_policy_cannot_let_in_is_refused(
    rules: Policy, sent: GenerateRequest, error: tuple[str, str, str]
) -> None:
    assert told(applied, rules, sent) == (InvalidRequest, *error)


def test_texts_without_a_job_are_refused_if_a_policy_would_change_them() -> None:
    assert guarded(REDACT, {"metadata": {"a": MAIL}}, "metadata") == {"metadata": {"a": "<EMAIL_1>"}}
    assert told(guarded, BLOCK, {"metadata": {"a": MAIL}}, "metadata")[1:] == (
        REFUSED,
        "policy_blocked_input",
        "metadata",
    )
    assert (changed_by(REDACT, "ann", "user"), changed_by(REDACT, MAIL, "user")) == (None, "<EMAIL_1>")
    check_fixed(REDACT, "ann", "name")
    assert told(check_fixed, REDACT, MAIL, "name")[1:] == (REFUSED, "policy_blocked_input", "name")
    assert told(check_fixed, REDACT, "ann\\u0040example.com", "name")[1:] == (REFUSED, "policy_blocked_input", "name")
    document = {"messages": [{"role": "user", "content": MAIL}], "steps": [MAIL]}
    for check, param, what in (
        (check_template, "messages", "this template: let requests bring it, as a variable"),
        (check_pipeline_text, "steps", "this pipeline: let jobs bring it, in their input"),
    ):
        message = f"the policy's rule mail takes something out of {what}"
        assert told(check, REDACT, document)[1:] == (message, "policy_blocked_input", param)
        check(FLAG, document)
    items = [{"role": "user", "content": MAIL}]
    message = "the policy's rule mail takes something out of these items: send them as the input of a response"
    assert told(check_items, REDACT, items)[1:] == (message, "policy_blocked_input", "items")
    assert told(check_items, REDACT, [{"role": "user", "name": MAIL}])[1:] == (REFUSED, "policy_blocked_input", "items")
    message = (
        "images cannot be checked by this tenant's policy: give the model a policy of its own, without rules for inputs"
    )
    assert told(refuse_images, REDACT, "input")[1:] == (message, "invalid_value", "input")
    refuse_images(OUTPUTS, "input")


def active(rules: Policy) -> ActivePolicy:
    stored: Any = SimpleNamespace(model="tiny", version=7, document=rules.document.model_dump(mode="json"))
    return ActivePolicy(stored, "")


def test_a_policy_is_pinned_if_its_output_or_a_worker_needs_it() -> None:
    outcome = applied(REDACT, request({"prompt": MAIL}))
    kept = pinned(active(REDACT), outcome, is_sealed=True)
    assert kept is not None
    assert (kept.model, kept.version, kept.counts) == ("tiny", 7, {"EMAIL": 1})
    plain = PolicyOutcome(request(), None, PlaceholderMap())
    assert pinned(active(INPUT_ONLY), plain, is_sealed=True) is None
    assert pinned(active(INPUT_ONLY), plain, is_sealed=True, reads_file=True) == PinnedPolicy(model="tiny", version=7)
    hit = PolicyHit(rule="r", kind="k", action="flag", count=1)
    assert pinned(active(INPUT_ONLY), replace(plain, flagged=(hit,)), is_sealed=False) == PinnedPolicy(
        model="tiny", version=7, flagged=(hit,)
    )


def test_a_version_of_a_policy_that_is_known_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now, nothing, stored = [0.0], SimpleNamespace(), {"version": 1, "rules": []}

    def rows(version: int) -> list[StoredPolicy]:
        made: Any = [SimpleNamespace(model=name, version=version, document=stored) for name in ("", "tiny")]
        return list(made)

    current = rows(1)
    monkeypatch.setattr(
        "producer_api.submission.input_policy.policies.list_policies",
        lambda _, tenant_id: current if tenant_id == "acme" else [],
    )
    kept = input_policy.ActivePolicies(nothing, clock=lambda: now[0])  # type: ignore[arg-type] # nothing reads it
    first = kept.policy_for("acme", "tiny")
    assert first is not None
    assert (first.model, kept.policy_for("acme", "other").model, kept.policy_for("globex", "tiny")) == (
        "tiny",
        "",
        None,
    )  # type: ignore[union-attr] # there is one
    now[0] = 5.0
    assert kept.policy_for("acme", "tiny") is first
    current = rows(2)
    now[0] = 9.9
    assert kept.policy_for("acme", "tiny") is first
    now[0] = 10.0
    assert kept.policy_for("acme", "tiny") is not first


# Prompt templates.

TEMPLATE = {
    "instructions": "Know {{ city }}.",
    "messages": [{"role": "developer", "content": "Be brief."}, {"role": "assistant", "content": "Yes."}],
    "variables": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 5}, "b": {"type": "string"}},
        "required": ["city", "b"],
    },
}


def version(template: dict[str, Any] = TEMPLATE) -> PromptVersion:
    return PromptVersion("prompt_1", "guide", 2, template, AT)


def test_a_template_is_filled_with_the_values_that_it_declares() -> None:
    filled, use = fill_version(version(), {"city": "Rome", "b": ""})
    assert (use.id, use.name, use.version, len(use.digest)) == ("prompt_1", "guide", 2, 64)
    assert [(one.role, one.content) for one in messages_of(filled)] == [
        ("system", "Know Rome."),
        ("system", "Be brief."),
        ("assistant", "Yes."),
    ]
    source, place = combined(GenerateInput.model_validate({"messages": [QUESTION]}), filled)
    assert ([one.content for one in source.messages or ()], place) == (
        ["Know Rome.", "Be brief.", "Yes.", "What?"],
        TemplatePlace(3),
    )
    raw = FilledTemplate(None, (), "Once")
    source, place = combined(GenerateInput.model_validate({"template": {"id": "p"}}), raw)
    assert (source.prompt, source.special_tokens, source.template, place) == ("Once", "text", None, TemplatePlace(0))
    refused = told(combined, GenerateInput.model_validate({"messages": [QUESTION]}), raw)
    assert refused[1:] == ("the prompt is a raw text, which goes without `messages`", "invalid_value", "input.messages")
    with_tools = GenerateInput.model_validate(
        {"template": {"id": "p"}, "tools": [{"type": "function", "function": {"name": "f"}}]}
    )
    assert told(combined, with_tools, raw)[1:] == (
        "the prompt makes an input that is refused: `tools` go with `messages`: a raw prompt has no place for them",
        "invalid_value",
        "input",
    )


@pytest.mark.parametrize(
    ("values", "message", "param"),
    [
        ({"city": "Rome", "b": "", "c": ""}, "the prompt has no variable c", "prompt.variables"),
        ({}, "the prompt needs a value for b, city", "prompt.variables"),
        (
            {"city": "Romans", "b": ""},
            "`prompt.variables.city` is not as the prompt declares it: the value is longer than 5 characters",
            "prompt.variables.city",
        ),
    ],
)
def test_values_that_a_template_does_not_declare_are_refused(values: dict[str, Any], message: str, param: str) -> None:
    assert told(fill_version, version(), values) == (InvalidRequest, message, "invalid_value", param)


# Pipelines.

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
    kind, message, code, param = told(used_pipeline, wrong, found)
    assert message.startswith("`input.a` is not as the pipeline declares it: the value")
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
        ("steps[1].model", ("steps[1].model of the pipeline: m", "pipeline")),
        ("input", ("m", "input")),
        (None, ("m", None)),
    ],
)
def test_an_error_of_a_pipeline_s_step_is_the_pipeline_s(param: str | None, expected: tuple[str, str | None]) -> None:
    for kind in (NotFound, NoWorker):
        with pytest.raises(kind) as caught, of_pipeline():
            raise kind("m", param=param)
        assert (caught.value.message, caught.value.param) == expected


# The rows of a flow and of its steps.


def prepared(body: FlowStepBody, **fields: Any) -> PreparedStep:
    made = PreparedStep(body, "steps[0]", VERSION, request(body.input, **body.own_fields), Marks())
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_a_flow_and_its_steps_are_rows_with_what_each_costs() -> None:
    settings = Settings(database_url="postgresql://x/y", redis_url="redis://x")
    settings = settings.model_copy(update={"default_deadline_s": 77.0, "default_max_attempts": 9})
    asked = FlowRequest.model_validate(
        {
            "steps": [step().model_dump()],
            "priority": 1,
            "service_class": "batch",
            "metadata": {"k": "v"},
            "user": "u",
            "deadline_ms": 1500,
            "max_attempts": 2,
            "webhook": {"url": "https://example.com/"},
        }
    )
    last = prepared(step(needs=("b",)), payload={"p": 1}, input_tokens=5, max_tokens=3)
    origin = Origin("route", None, "", False, 1, "project")
    row = flow_row(settings, PRINCIPAL, asked, origin, last)
    expected = {
        "tenant_id": "acme",
        "task": "flow",
        "model": "tiny",
        "model_version": 3,
        "queue": "cache",
        "service_class": "batch",
        "priority": 1,
        "payload": {},
        "input_tokens": 0,
        "cost_tokens": 0,
        "metadata": {"k": "v"},
        "webhook": {"url": "https://example.com/"},
        "max_attempts": 2,
        "deadline_s": 1.5,
        "announce": False,
        "api_key_id": "key_1",
        "project_id": "project",
        "user_id": "u",
    }
    assert {name: getattr(row, name) for name in expected} == expected
    plain = flow_row(settings, PRINCIPAL, FlowRequest.model_validate({"steps": [step().model_dump()]}), origin, last)
    assert (plain.deadline_s, plain.max_attempts, plain.webhook) == (77.0, 9, None)
    made = new_step(row, last)
    of_step = {
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
        "parent_id": row.id,
        "step": "a",
        "needs": ("b",),
    }
    kept = (
        "tenant_id",
        "service_class",
        "priority",
        "max_attempts",
        "deadline_s",
        "api_key_id",
        "project_id",
        "user_id",
    )
    assert {name: getattr(made, name) for name in of_step | dict.fromkeys(kept)} == of_step | {
        name: expected[name] for name in kept
    }
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


# Retrieval.

STORES = {"vector_store_ids": ["vs_1"]}


def test_a_request_with_retrieval_is_a_flow_of_one_step() -> None:
    sent = request(retrieval=STORES, priority=1, user="u", sampling={"max_tokens": 4}, n=1)
    flow = as_flow(sent)
    (only,) = flow.steps
    assert (flow.priority, flow.user, only.name, only.model, only.task) == (1, "u", "answer", "tiny", "generate")
    assert only.own_fields == {"retrieval": STORES, "sampling": {"max_tokens": 4}, "n": 1}
    use = PromptUse(id="p", name="n", version=1, digest="d")
    filled = as_flow(sent.filled_in(sent.input, use, TemplatePlace(1)))
    assert filled.steps[0].filled_from == (use, TemplatePlace(1))
    errors = {
        "steps[0].input.messages": "input.messages",
        "steps[0]": None,
        "steps": None,
        "model": "model",
    }
    for param, expected in errors.items():
        error = as_one(InvalidRequest(f"`{param}`: wrong", param=param))
        assert as_one(NoWorker("none", param=param)).param == expected
        said = f"`{expected}`: wrong" if param.startswith("steps[0].") else f"`{param}`: wrong"
        assert (error.param, error.message) == (expected, said)


@pytest.mark.parametrize(
    ("fields", "message", "code", "param"),
    [
        (
            {"retrieval": {"vector_store_ids": []}},
            "`retrieval.vector_store_ids`: array should have at least 1 item, not 0",
            "invalid_value",
            "retrieval.vector_store_ids",
        ),
        ({"retrieval": 5}, "`retrieval`: input should be a valid object", "invalid_value", "retrieval"),
        ({"retrieval": STORES, "n": 2}, "`retrieval` goes with one answer: leave out `n`", "invalid_value", "n"),
        (
            {"retrieval": STORES, "input": {"messages": [QUESTION], "tools": [{}]}},
            "`retrieval` and `tools` do not go together in one step",
            "invalid_value",
            "input.tools",
        ),
        (
            {"retrieval": STORES | {"ranking_options": {"ranker": "best"}}},
            "passages for an answer are not reranked: leave `ranker` out, or send `auto`",
            "unsupported_parameter",
            "retrieval.ranking_options.ranker",
        ),
    ],
)
def test_a_retrieval_that_cannot_be_followed_is_refused(
    fields: dict[str, Any], message: str, code: str, param: str
) -> None:
    _, said, found, field = told(retrieval_of, step(**fields))
    assert (found, field) == (code, param)
    assert said == message


def test_a_retrieval_with_usual_options_is_taken() -> None:
    for fields in ({}, {"n": 1}, {"n": None}):
        assert retrieval_of(step(retrieval=STORES, **fields)) == Retrieval.model_validate(STORES)
    for ranker in ("auto", "none", "default-2024"):
        assert retrieval_of(step(retrieval=STORES | {"ranking_options": {"ranker": ranker}})) is not None
    assert retrieval_of(step()) is None


class Stores:
    """Vector stores of a tenant by id, with the version of their vectors; it notes which were used."""

    def __init__(self, **versions: tuple[str, int]) -> None:
        self.versions, self.touched = versions, list[str]()

    def get(self, _db: object, tenant_id: str, store_id: str) -> Any:
        if tenant_id != "acme" or store_id not in self.versions:
            raise NotFound(f"no vector store {store_id}")
        model, number = self.versions[store_id]
        return SimpleNamespace(model=model, model_version=number)

    def touch(self, _db: object, _tenant_id: str, store_id: str) -> None:
        self.touched.append(store_id)


def parts(found: ModelVersion | None = None) -> Any:
    def resolve(name: str) -> ModelVersion:
        if found is None:
            raise NotFound(f"no model {name}")
        return found

    catalog = SimpleNamespace(resolve=resolve, task_settings=lambda _: None)
    return SimpleNamespace(db=None, catalog=catalog, settings=SimpleNamespace(max_steps=16))


def test_a_search_embeds_the_last_question_with_the_version_of_the_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    stores = Stores(vs_1=("org/vectors", 2), vs_2=("org/vectors", 2), vs_3=("other", 1))
    monkeypatch.setattr(retrieval_steps, "vector_stores", stores)
    vectors = replace(VERSION, model="org/vectors", version=2)
    wanted = Retrieval.model_validate({"vector_store_ids": ["vs_1", "vs_2"]})
    turns = [
        {"role": "user", "content": "First?"},
        {"role": "user", "content": "Last?"},
        {"role": "assistant", "content": "No."},
    ]
    made = search_step(parts(vectors), "acme", step("a", {"messages": turns}, needs=("b",)), request(), wanted)
    assert (made.name, made.task, made.model, made.needs, made.stream) == (
        "a:search",
        "embed",
        "org/vectors@2",
        ("b",),
        False,
    )
    assert (made.input, made.own_fields, stores.touched) == ({"texts": ["Last?"]}, {"truncate": True}, ["vs_1", "vs_2"])
    reference = {"$from": "b.output.text"}
    made = search_step(
        parts(vectors), "acme", step("a", {"messages": [{"role": "user", "content": reference}]}), request(), wanted
    )
    assert made.input == {"texts": [reference]}
    filled = search_step(parts(vectors), "acme", step("a", {"template": {"id": "p"}}), request(), wanted)
    assert filled.input == {"texts": ["What?"]}
    message = "`retrieval` searches with the last message of the user: add one with a text"
    for content in (" ", [{"type": "text", "text": "x"}]):
        asked = step("a", {"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": content}]})
        assert told(search_step, parts(vectors), "acme", asked, request(), wanted)[1:] == (
            message,
            "invalid_value",
            "input.messages",
        )
    asked = step()
    gone = Retrieval.model_validate({"vector_store_ids": ["vs_1", "vs_9"]})
    assert told(search_step, parts(vectors), "acme", asked, request(), gone)[3] == "retrieval.vector_store_ids[1]"
    mixed = Retrieval.model_validate({"vector_store_ids": ["vs_3", "vs_1"]})
    assert told(search_step, parts(vectors), "acme", asked, request(), mixed) == (
        InvalidRequest,
        "the stores have vectors of different models (org/vectors@2, other@1): name stores of one",
        "invalid_value",
        "retrieval.vector_store_ids",
    )
    assert told(search_step, parts(), "acme", asked, request(), wanted) == (
        Conflict,
        "org/vectors@2, which makes the vectors of this store, is retired: add its files to a new store",
        "conflict",
        "retrieval.vector_store_ids",
    )


# Server tools.

TOOLS = {"names": ["weather"]}


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        (
            {"server_tools": TOOLS | {"max_tool_calls": -1}},
            "`server_tools.max_tool_calls`: input should be greater than or equal to 0",
            "server_tools.max_tool_calls",
        ),
        ({"server_tools": {"names": ["a", "a"]}}, "`server_tools.names`: a tool is named twice", "server_tools.names"),
        ({"server_tools": TOOLS, "n": 2}, "`server_tools` goes with one answer: leave out `n`", "n"),
        (
            {"server_tools": TOOLS, "retrieval": STORES},
            "`server_tools` and `retrieval` do not go together in one step",
            "retrieval",
        ),
        (
            {"server_tools": TOOLS, "input": {"messages": [QUESTION], "tool_choice": "auto"}},
            "`server_tools` and `tool_choice` do not go together in one step",
            "input.tool_choice",
        ),
        (
            {"server_tools": TOOLS, "input": {"messages": [QUESTION], "tools": []}},
            "`server_tools` and `tools` do not go together in one step",
            "input.tools",
        ),
        (
            {"server_tools": TOOLS, "input": {"prompt": "x"}},
            "`server_tools` goes with `messages`: a raw prompt has no place for tools",
            "server_tools",
        ),
    ],
)
def test_server_tools_that_do_not_go_are_refused(fields: dict[str, Any], message: str, param: str) -> None:
    assert told(server_tools_of, step(**fields)) == (InvalidRequest, message, "invalid_value", param)


def test_only_the_answer_has_tools_and_each_call_takes_two_steps() -> None:
    calling, plain = step("a", server_tools=TOOLS | {"max_tool_calls": 7}), step("b")
    check_tools([calling], calling, 15)
    check_tools([plain, calling], calling, 16)
    assert told(check_tools, [calling], calling, 14)[1:] == (
        "each call may take two steps, and a job has at most 14 (HEADRACE_MAX_STEPS): at most 6 calls are accepted "
        "here",
        "invalid_value",
        "steps[0].server_tools.max_tool_calls",
    )
    assert told(check_tools, [plain, calling], plain, 16)[1:] == (
        "only the step with the answer may have `server_tools`: other steps would get the text before the calls",
        "invalid_value",
        "steps[1].server_tools",
    )


def stored(name: str, **fields: Any) -> StoredTool:
    definition = HttpTool(url="https://tools.example.com/", description=f"About {name}.", **fields)
    return StoredTool(f"tool_{name}", "acme", name, definition, AT, AT)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> dict[str, StoredTool]:
    """The tools of the tenant ``acme``, by name."""
    found = {"weather": stored("weather"), "pay": stored("pay", require_approval="always")}

    def named(_db: object, tenant_id: str, names: Sequence[str]) -> dict[str, StoredTool]:
        return {name: found[name] for name in names if name in found} if tenant_id == "acme" else {}

    monkeypatch.setattr("producer_api.submission.tool_steps.tools.named", named)
    models = [SimpleNamespace(name=name, task=task) for name, task in (("tiny", "generate"), ("tools", "call_tool"))]
    monkeypatch.setattr("producer_api.submission.tool_steps.models.list_models", lambda _: models)
    return found


def wanted(**fields: Any) -> Any:
    return server_tools_of(step(server_tools=TOOLS | fields))


@pytest.mark.usefixtures("tools")
def test_a_step_gets_its_tools_as_functions_and_what_may_follow() -> None:
    body, then = with_tools(parts(CALLER), PRINCIPAL, step(), wanted(max_tool_calls=4))
    function = {"name": "weather", "description": "About weather.", "parameters": {"type": "object", "properties": {}}}
    assert body.input == {"messages": [QUESTION], "tools": [{"type": "function", "function": function}]}
    assert then == {"kind": "tools", "calls_left": 4, "model": "tools", "version": 1}
    body, _ = with_tools(parts(CALLER), PRINCIPAL, step(), wanted(tool_choice="required"))
    assert body.input["tool_choice"] == "required"
    body, _ = with_tools(parts(CALLER), PRINCIPAL, step(), wanted(max_tool_calls=0))
    assert body.input["tool_choice"] == "none"
    assert without_tools(body.input) == {"messages": [QUESTION]}


@pytest.mark.usefixtures("tools")
def test_calls_wait_for_an_approval_as_the_request_or_the_tool_says() -> None:
    def waiting(ends: bool = False, **fields: Any) -> Any:
        _, then = with_tools(parts(CALLER), PRINCIPAL, step(), wanted(approval_timeout_ms=1500, **fields), ends=ends)
        return then["kind"], then.get("approval")

    assert waiting() == ("tools", None)
    kind = "tools_with_approval"
    assert waiting(require_approval="always") == (kind, {"names": ["weather"], "within_s": 1.5})
    assert waiting(names=["weather", "pay"], ends=True) == (kind, {"names": ["pay"], "within_s": 1.5, "ends": True})
    by_name = {"always": {"tool_names": ["weather"]}}
    assert waiting(names=["pay", "weather", "calculator"], require_approval=by_name) == (
        kind,
        {"names": ["pay", "weather"], "within_s": 1.5},
    )


@pytest.mark.usefixtures("tools")
def test_tools_and_callers_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(principal: Principal = PRINCIPAL, found: ModelVersion = CALLER, **fields: Any) -> Any:
        return told(with_tools, parts(found), principal, step(), wanted(**fields))

    assert refused(names=["weather", "gone"]) == (
        NotFound,
        "no tool is named gone",
        "not_found",
        "server_tools.names[1]",
    )
    assert refused(Principal("globex", "key_2", frozenset()))[3] == "server_tools.names[0]"
    assert refused(require_approval={"always": {"tool_names": ["pay"]}})[1:] == (
        "the model gets no tool pay: it gets weather",
        "invalid_value",
        "server_tools.require_approval",
    )
    assert refused(found=VERSION)[1:] == (
        f"the model tiny {VERSION.spec.purpose}",
        "invalid_value",
        "server_tools.model",
    )
    assert refused(replace(PRINCIPAL, models=frozenset({"tools"})), model="other")[2] == "model_not_allowed"
    none = (
        "no model here makes calls: let the operator run `headrace register tools --task call_tool` and "
        "`headrace worker --model tools`"
    )
    assert refused(replace(PRINCIPAL, models=frozenset({"tiny"})))[1:] == (none, "invalid_value", "server_tools")
    several = [SimpleNamespace(name=name, task="call_tool") for name in ("one", "two")]
    monkeypatch.setattr("producer_api.submission.tool_steps.models.list_models", lambda _: several)
    assert refused()[1:] == ("several models make calls (one, two): name one", "invalid_value", "server_tools.model")
    monkeypatch.setattr(tool_steps, "MAX_TOOLS", 1)
    assert refused(names=["weather", "pay"])[1:] == (
        "these are 2 functions, and a model gets at most 1: name single tools of a server, as server__tool",
        "invalid_value",
        "server_tools.names",
    )


@pytest.mark.usefixtures("tools")
def test_answered_calls_are_the_first_steps_of_the_next_job() -> None:
    calls = [
        {"id": name, "type": "function", "function": {"name": "x", "arguments": "{}"}}
        for name in ("apr_1", "apr_2", "own")
    ]
    turns = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": calls},
        *({"role": "tool", "tool_call_id": name, "content": "y"} for name in ("apr_1", "apr_2", "own")),
    ]
    flow = as_flow(request({"messages": turns}, server_tools=TOOLS | {"max_tool_calls": 3}))
    answered = [AnsweredCall("apr_1", "weather", '{"a": 1}'), AnsweredCall("apr_2", "pay", "{}", "no")]
    answer, first, second = with_answered_calls(parts(CALLER), PRINCIPAL, flow, answered).steps
    names = (first.name, second.name)
    assert answer.needs == names
    assert [(one.task, one.model) for one in (first, second)] == [("call_tool", "tools@1")] * 2
    assert first.input == {"tool": "weather", "arguments": '{"a": 1}'}
    assert second.input == {"tool": "pay", "arguments": "{}", "refusal": "no"}
    assert answer.own_fields["server_tools"] == {"names": ["weather"], "max_tool_calls": 2}
    messages = answer.input["messages"]
    assert [one["function"]["name"] for one in messages[1]["tool_calls"]] == ["weather", "pay", "x"]
    assert [one["content"] for one in messages[2:]] == [
        {"$from": f"{names[0]}.output.text"},
        {"$from": f"{names[1]}.output.text"},
        "y",
    ]
    assert with_answered_calls(parts(CALLER), PRINCIPAL, flow, []) is flow
    one = as_flow(request({"messages": turns}, server_tools=TOOLS | {"max_tool_calls": 1, "tool_choice": "required"}))
    (answer, *_) = with_answered_calls(parts(CALLER), PRINCIPAL, one, answered).steps
    assert answer.own_fields["server_tools"] == {"names": ["weather"], "max_tool_calls": 0, "tool_choice": "auto"}
    none = as_flow(request({"messages": turns}, server_tools=TOOLS | {"max_tool_calls": 0}))
    assert told(with_answered_calls, parts(CALLER), PRINCIPAL, none, answered)[1:] == (
        "1 calls were approved, and `max_tool_calls` is 0: raise it, or refuse some of them",
        "invalid_value",
        "server_tools.max_tool_calls",
    )


def test_values_are_put_back_only_where_payloads_are_sealed() -> None:
    restoring = policy({"id": "mail", "kinds": ["email"], "action": "redact", "stage": "input", "restore": True})
    outcome = applied(restoring, request({"prompt": MAIL}))
    assert told(pinned, active(restoring), outcome, is_sealed=False)[:2] == (
        Unavailable,
        "this tenant's policy puts values back, and this server has no HEADRACE_ENCRYPTION_KEYS",
    )
    kept = pinned(active(restoring), outcome, is_sealed=True)
    assert kept is not None
    assert kept.vault == outcome.vault.model_dump(mode="json")
    assert MAIL in str(kept.vault)
