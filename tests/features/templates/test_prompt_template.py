"""The language of prompt templates: what it allows, what it refuses, and its bounds."""

from typing import Any

import pytest
from pydantic import ValidationError

from headrace.features.templates.prompt_template import RenderedTemplate, Template
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.prompt_reference import MAX_VARIABLES, FilledTemplate
from headrace.store.payloads.strict_model import MAX_TEXT_CHARS

ANY = {"type": "object", "properties": {"x": {}, "big": {}, "y": {"default": None}}}


def fill(text: str, **values: Any) -> str | None:
    filled: FilledTemplate = RenderedTemplate(Template(text=text, variables=ANY)).fill(values)
    return filled.text


@pytest.mark.parametrize(
    ("text", "x", "made"),
    [
        ("{{ x }}", "{{ y }} {% if %}", "{{ y }} {% if %}"),
        ("{{ x }} {{ y }}\n", 3, "3 null\n"),
        ("{{ x.items }}, {{ x.a[1] }}", {"items": "i", "a": [1, 2]}, "i, 2"),
        (
            "{% for a in x %}{{ loop.index }}{{ a }}{% if not loop.last %}, {% endif %}{% endfor %}",
            ["a", "b"],
            "1a, 2b",
        ),
        ("{% if x is defined and x %}{{ x|upper }}{% else %}-{% endif %}", "a", "A"),
        ("{{ x|join('; ') }} {{ x|length }} {{ x|tojson }}", ["a", 1], 'a; 1 2 ["a", 1]'),
        ("{% raw %}{{ x }}{% endraw %}", "a", "{{ x }}"),
    ],
)
def test_values_conditions_loops_and_filters(text: str, x: Any, made: str) -> None:
    assert fill(text, x=x) == made


@pytest.mark.parametrize(
    "text",
    [
        *("{{ x", "{{ z }}", "{{ x() }}", "{{ x * 9 }}", "{{ x ~ x }}", "{{ [x] }}", "{{ x[0:9] }}", "{{ self }}"),
        *("{{ x|attr('a') }}", "{{ x|join(x) }}", "{{ x|map('upper') }}", "{{ x is sameas 1 }}", "{{ range(9) }}"),
        *("{% set y = x %}", "{% include 'a' %}", "{% import 'a' as b %}", "{% macro m() %}{% endmacro %}"),
        *("{% for a in x recursive %}{% endfor %}", "{% block b %}{% endblock %}", "{% for a in 'ab' %}{% for b in"),
        *("{{ x }}" * 4_001, "{{ " + "(" * 3_000 + "x" + ")" * 3_000 + " }}", "{{ " + "9" * 5_000 + " }}"),
    ],
)
def test_what_could_reach_the_process_or_repeat_is_no_template(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"template|`text`"):
        fill(text, x="a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ x.__class__ }}", "unsafe"),
        ("{{ x.append }}", "unsafe"),
        ("{{ x.none }}", "no attribute"),
        ("{{ big.upper }}", "serializable"),
        ("{% for a in big %}{% endfor %}", "a loop goes over a list"),
        ("{% for a in x %}{{ big }}{% endfor %}", "characters"),
        ("{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}", "steps"),
        ("{% for a in x %}{% for b in x %}{% if big|upper == big %}{% endif %}{% endfor %}{% endfor %}", "over"),
        ("{{ x|join('" + "-" * 9_000 + "') }}", "characters"),
    ],
)
def test_filling_in_is_bounded(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as raised:
        fill(text, x=[1] * 200, big="b" * 50_000)
    assert raised.value.param == "prompt.variables"


SCHEMA: dict[str, Any] = {
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 3}, "any": True},
    "additionalProperties": True,
}


def test_values_are_declared_and_needed_unless_they_have_a_default() -> None:
    template = Template(text="{{ city }} {{ days }}", variables=SCHEMA)
    assert template.schema_of_values == {
        "type": "object",
        "required": ["city", "any"],
        "properties": SCHEMA["properties"],
        "additionalProperties": False,
    }
    rendered = RenderedTemplate(template)
    assert rendered.fill({"city": "Rome"}).text == "Rome 3"
    assert rendered.fill({"city": "Rome", "days": 5}).text == "Rome 5"
    assert Template(text="{{ a }}", variables=("a", "b")).schema_of_values == {
        "type": "object",
        "required": ["a", "b"],
        "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
        "additionalProperties": False,
    }
    own = Template(text="x", variables={"properties": {"a": {}}, "required": []})
    assert own.schema_of_values["required"] == []


def test_a_conversation_has_its_parts_in_order() -> None:
    messages = [{"role": "user", "content": "{{ x }}?"}, {"role": "assistant", "content": "{{ x }}!\n"}]
    template = Template.model_validate({"instructions": "Be {{ x }}.", "messages": messages, "variables": ["x"]})
    assert RenderedTemplate(template).fill({"x": "kind"}) == FilledTemplate(
        "Be kind.", (("user", "kind?"), ("assistant", "kind!\n")), None
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "`instructions`, `messages`"),
        ({"text": "a", "instructions": "b"}, "`instructions`, `messages`"),
        ({"text": ""}, "at least 1 character"),
        ({"text": "x" * 100_001}, "at most 100000 characters"),
        ({"messages": [{"role": "user", "content": "a"}] * 65}, "at most 64 items"),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            "Input should be 'system', 'developer', 'user' or 'assistant'",
        ),
        (
            {"text": "a", "variables": {"properties": {f"v{n}": {} for n in range(MAX_VARIABLES + 1)}}},
            f"at most {MAX_VARIABLES} ",
        ),
        ({"text": "a", "variables": {"properties": []}}, "`variables.properties`"),
    ],
)
def test_a_template_of_another_form_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Template.model_validate(fields)
    assert said in str(refused.value)
    Template.model_validate({"messages": [{"role": "user", "content": "a"}] * 64})
    Template.model_validate({"text": "a", "variables": {"properties": {f"v{n}": {} for n in range(MAX_VARIABLES)}}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\n{{ z }}", "`variables`: z"),
        ("a\n{% set x = 1 %}", "`text`, line 2: no `assign`"),
        ("{{ x|sort }}", "`text`, line 1: no filter `sort`"),
        ("{{ x|join(d=1) }}", "`text`, line 1: what a filter takes"),
        ("{% if x is even %}{% endif %}", "`text`, line 1: no test `even`"),
        ("{% if x is defined(1) %}{% endif %}", "`text`, line 1: no test `defined`"),
        ("{% for a, b in x %}{% endfor %}", "`for NAME in LIST`"),
        ("{{ range }}", "`variables`: range"),
        ("{{ x }}" * 4_001, "4001 tags"),
        ("{{ x|join('a') }}" * 3_400, "parts: at most 10000"),
    ],
)
def test_what_is_no_template_is_told_with_its_place(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        fill(text, x="a")
    assert said in refused.value.message


def test_a_line_end_behind_a_tag_is_not_written_and_marks_of_markup_are() -> None:
    assert fill("{% if x %}\n<{{ x }}>\n{% endif %}\n", x="&") == "<&>\n"
    assert fill("{{ x|trim }}|{{ x|lower }}|{{ y|default('d') }}", x=" Ä ") == "Ä| ä |null"


def test_the_values_have_a_size_before_they_are_filled_in() -> None:
    with pytest.raises(InvalidRequest, match=f"over {MAX_TEXT_CHARS} characters") as refused:
        fill("a", x="x" * MAX_TEXT_CHARS)
    assert refused.value.param == "prompt.variables"
    assert fill("a", x="x" * (MAX_TEXT_CHARS - 9)) == "a"


def test_a_joined_list_is_measured_before_it_is_made() -> None:
    with pytest.raises(InvalidRequest, match=f"over {MAX_TEXT_CHARS} characters"):
        fill("{% if x|join('" + "-" * 90_000 + "') %}{% endif %}", x=[1] * 200)


def test_the_digest_is_of_the_content() -> None:
    one, same, other = (Template(text=text, variables=names) for text, names in (("a", ()), ("a", []), ("a", ("x",))))
    assert one.content_digest == same.content_digest != other.content_digest
    schemas = ({"properties": {"a": {}, "b": {}}}, {"properties": {"b": {}, "a": {}}})
    first, second = (Template(text="a", variables=schema).content_digest for schema in schemas)
    assert first == second


def test_the_steps_and_the_time_of_a_template_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = "{% for a in x %}{% endfor %}"
    assert fill(loop, x=[1] * 10_000) == ""
    for text, num in ((loop, 10_001), (loop + "{{ y|length == 0 }}", 10_000)):
        with pytest.raises(InvalidRequest) as refused:
            fill(text, x=[1] * num, y="")
        assert "over 10000 steps" in refused.value.message
    monkeypatch.setattr("headrace.features.templates.prompt_template.CPU_S", -1.0)
    with pytest.raises(InvalidRequest, match=r"over -1\.0 s"):
        fill(loop, x=[1])
    assert fill("{{ x }}", x=1) == "1"


def test_comparisons_with_long_lists_end_at_the_bound_of_time() -> None:
    text = ("{% if " + " or ".join(["y in x"] * 6) + " %}{% endif %}") * 150
    with pytest.raises(InvalidRequest, match=r"over 0\.5 s"):
        fill(text, x=[1] * 300_000, y=0.5)


def test_all_parts_of_a_template_share_its_bounds() -> None:
    messages = [{"role": "user", "content": "{% for a in x %}{% endfor %}"}] * 2
    template = Template.model_validate({"messages": messages, "variables": ANY})
    RenderedTemplate(template).fill({"x": [1] * 5000, "big": ""})
    with pytest.raises(InvalidRequest, match="steps"):
        RenderedTemplate(template).fill({"x": [1] * 5001, "big": ""})
    messages = [{"role": "user", "content": "{{ x|trim|trim|trim }}" * 1900}] * 2
    RenderedTemplate(Template.model_validate({"messages": messages[:1], "variables": ANY}))
    with pytest.raises(InvalidRequest, match="at most 10000"):
        RenderedTemplate(Template.model_validate({"messages": messages, "variables": ANY}))


def test_a_value_that_is_missing_is_named() -> None:
    for text, name in (("{{ x|upper }}", "'x'"), ("{{ x }}", "'x'"), ("{{ big.city }}", "'city'")):
        with pytest.raises(InvalidRequest, match=name):
            fill(text, big={"a": 1})
    assert fill("{{ big.city|default('-') }}{{ x|default('+') }}", big={}) == "-+"
