"""Prompt templates that are filled with the values of a request. No services."""

from typing import Any

import pytest

from headrace.producer_api.submission.template_filling import combined, fill_version, messages_of
from headrace.prompts.prompt_template import FilledTemplate
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.prompt_reference import TemplatePlace
from headrace.store.registry.prompt_templates import PromptVersion
from headrace.store.tasks.generate import GenerateInput
from tests.producer_api.submission.steps.making import AT, QUESTION
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
