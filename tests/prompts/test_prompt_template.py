"""The language of prompt templates: what it allows, what it refuses, and its bounds."""

from typing import Any

import pytest

from prompts.prompt_template import FilledTemplate, RenderedTemplate, Template
from store.errors import InvalidRequest

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


def test_the_digest_is_of_the_content() -> None:
    one, same, other = (Template(text=text, variables=names) for text, names in (("a", ()), ("a", []), ("a", ("x",))))
    assert one.content_digest == same.content_digest != other.content_digest
