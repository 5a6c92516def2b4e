"""References between steps, and the variables of templates. No I/O."""

import re
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from headrace.store.errors import InvalidRequest
from headrace.store.payloads.references import look_up, references, replaced, step_of
from headrace.store.payloads.step_payload import Marks, with_references, with_texts
from headrace.store.payloads.template_variables import TemplateVariables
from tests.refusals import Naming
from tests.store.payloads.making import nested, numbered


class TestReferences:
    def test_a_path_begins_with_the_input_or_with_a_step(self) -> None:
        assert (step_of("input.a"), step_of("a.output.b"), step_of("a.output")) == (None, "a", "a")
        for path in ("a", "a.text"):
            with pytest.raises(InvalidRequest) as caught:
                step_of(path)
            assert caught.value.message == Naming(f"`{path}`", "`output`", "`a.output.text`")

    @pytest.mark.parametrize(
        "mark",
        [
            {"$from": "input.a", "other": 1},
            {"$from": 1},
            {"$from": "1a.output"},
            {"$from": "a." + "b" * 65},
            {"$from": "a" * 65},
            {"$from": "a" + ".b" * 16},
            {"$from": ".".join(["a" * 60] * 5)},
            {"$from": "input.a "},
        ],
    )
    def test_a_malformed_reference_is_refused_wherever_it_stands(self, mark: dict[str, Any]) -> None:
        for body in (mark, {"a": [mark]}, ({"b": mark},)):
            with pytest.raises(InvalidRequest, match="reference is"):
                list(references(body))
            with pytest.raises(InvalidRequest, match="reference is"):
                replaced(body, str.upper)

    def test_the_longest_path_is_found_in_all_lists_and_objects(self) -> None:
        longest = ".".join(["a" * 64, *("b" * 14,) * 15])
        body = {"x": [{"$from": longest}, {"y": ({"$from": "input.q"}, 1)}], "z": None}
        assert (len(longest), list(references(body))) == (289, [longest, "input.q"])
        assert replaced(body, str.upper) == {"x": [longest.upper(), {"y": ["INPUT.Q", 1]}], "z": None}

    def test_a_value_that_is_no_text_is_written_as_json(self) -> None:
        values = {"a": [0, None, True, "é", {"b": 1}], "t": ("x", "y")}
        found = [look_up(values, path) for path in ("a.0", "a.2", "a.3", "a.4", "t.1")]
        assert found == ["0", "true", "é", '{"b":1}', "y"]
        for path, why in (
            ("a.1", Naming("`a.1`", "null")),
            ("a.5", Naming("`a.5`", "`5`")),
            ("a.-1", Naming("`a.-1`", "`-1`")),
            ("a.3.0", Naming("`a.3.0`", "`0`")),
        ):
            with pytest.raises(InvalidRequest) as caught:
                look_up(values, path)
            assert caught.value.message == why

    def test_marks_are_replaced_in_tuples_and_inside_of_texts(self) -> None:
        marks = Marks()
        first, second = marks.mark("a.output"), marks.mark("b.output")
        assert (len({first, second}), marks.paths) == (2, {first: "a.output", second: "b.output"})
        assert not first.isascii()
        assert len(first) == len(second) == 18
        body = {"x": (f"<{first}{second}>", 1), "y": first}
        assert with_texts(body, {first: "1", second: "2"}) == {"x": ["<12>", 1], "y": "1"}
        assert with_references(body, str.upper, marks.paths) == {"x": [f"<{first}{second}>", 1], "y": "A.OUTPUT"}


class TestTemplateVariables:
    variables = TypeAdapter[dict[str, Any]](TemplateVariables)

    @pytest.mark.parametrize(
        ("given", "why"),
        [
            (numbered(16, 1), None),
            (numbered(17, 1), "17 variables: .* 16 "),
            ({"a": 1_000_000, "b": [-1_000_000.0]}, None),
            ({"a": 1_000_001}, "between -1000000 and 1000000"),
            ({"a": {"b": [-1_000_001]}}, "between -1000000 and 1000000"),
            ({"a": nested(6)}, None),
            ({"a": nested(7)}, "nested .* 8 "),
            ({"a": [[[[[[[[]]]]]]]]}, "nested .* 8 "),
            ({"a": "x" * 4087}, None),
            ({"a": "x" * 4088}, "4096 characters"),
            ({"tools": []}, "`tools`"),
        ],
    )
    def test_they_are_few_small_and_not_ours(self, given: dict[str, Any], why: str | None) -> None:
        if why is None:
            assert self.variables.validate_python(given) == given
            return
        with pytest.raises(ValidationError) as caught:
            self.variables.validate_python(given)
        (problem,) = caught.value.errors()
        assert re.search(why, problem["msg"])

    @pytest.mark.parametrize("name", ["", "1a", "_a", "a-b", "a" * 65])
    def test_a_name_is_one_of_the_template_language(self, name: str) -> None:
        assert self.variables.validate_python({"a" * 64: 1, "A_1": 2}) == {"a" * 64: 1, "A_1": 2}
        with pytest.raises(ValidationError, match="pattern"):
            self.variables.validate_python({name: 1})
