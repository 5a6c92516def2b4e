"""Prompt templates that are filled with the values of a request. No services."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.templates import template_filling
from headrace.features.templates.template_filling import TenantTemplates, combined, fill_version, messages_of
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.payloads.prompt_reference import DefaultTemplate, FilledTemplate, TemplatePlace
from headrace.store.registry.prompt_templates import PromptVersion
from headrace.store.tasks.generate import GenerateInput
from tests.producer_api.submission.steps.making import AT, QUESTION, VERSION, request
from tests.refusals import Naming, refusal

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
    refused = refusal(combined, GenerateInput.model_validate({"messages": [QUESTION]}), raw)
    assert refused[2:] == ("invalid_value", "input.messages")
    with_tools = GenerateInput.model_validate(
        {"template": {"id": "p"}, "tools": [{"type": "function", "function": {"name": "f"}}]}
    )
    _, message, *place = refusal(combined, with_tools, raw)
    assert ("`tools`" in message, place) == (True, ["invalid_value", "input"])


@pytest.mark.parametrize(
    ("values", "named", "param"),
    [
        ({"city": "Rome", "b": "", "c": ""}, "variable c", "prompt.variables"),
        ({}, "b, city", "prompt.variables"),
        (
            {"city": "Romans", "b": ""},
            "5 characters",
            "prompt.variables.city",
        ),
    ],
)
def test_values_that_a_template_does_not_declare_are_refused(values: dict[str, Any], named: str, param: str) -> None:
    assert refusal(fill_version, version(), values) == (InvalidRequest, Naming(named), "invalid_value", param)


NOT_ASKED: Any = None
DEFAULT = DefaultTemplate.model_validate(
    {"id": "p", "name": "n", "version": 1, "digest": "d", "messages": [{"role": "system", "content": "Be brief."}]}
)


def test_a_template_is_filled_in_with_the_names_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(_db: object, tenant_id: str, name: str, number: Any) -> PromptVersion:
        if tenant_id != "acme":
            raise NotFound(f"no prompt {name}", param="prompt")
        return version({"instructions": "Know {{ city }}.", "variables": ["city"]})

    monkeypatch.setattr(template_filling, "prompt_templates", SimpleNamespace(get=get))
    fill = TenantTemplates(NOT_ASKED).fill
    asked = request({"template": {"id": "guide", "variables": {"city": "Rome"}}})
    filled = fill("acme", asked)
    assert [one.content for one in filled.input.messages or ()] == ["Know Rome."]
    assert (filled.prompt_use and filled.prompt_use.version, filled.template_place) == (2, TemplatePlace(1))
    assert fill("acme", request({"prompt": "hello"})).input.prompt == "hello"
    assert refusal(fill, "globex", asked)[::3] == (NotFound, "input.template")
    wrong = request({"template": {"id": "guide", "variables": {"city": 5}}})
    assert refusal(fill, "acme", wrong)[::3] == (InvalidRequest, "input.template.variables.city")


def test_a_default_template_comes_before_a_conversation_alone() -> None:
    with_default = TenantTemplates(NOT_ASKED).with_default
    version = replace(VERSION, template=DEFAULT)
    filled: Any = with_default(request(), version)
    assert [one.content for one in filled.input.messages] == ["Be brief.", "What?"]
    assert (filled.prompt_use, filled.template_place.head, filled.template_place.tail) == (DEFAULT.use, 1, 0)
    assert filled.input.special_tokens == "text"
    for other in (request({"prompt": "hi"}), request({"messages": [QUESTION], "template": {"id": "p"}}), filled):
        assert with_default(other, version) is other
    same = request()
    assert with_default(same, VERSION) is same
