"""The OpenAPI document describes every field of a request and every parameter, and has an example for every body."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema_rs
import pytest

from headrace.producer_api.app import create_app
from headrace.producer_api.http.openapi_text import EXAMPLES, FIELDS, PARAMETERS, describe
from headrace.store.settings import Settings


@cache
def document() -> dict[str, Any]:
    settings = Settings(database_url="postgresql://nowhere/none", redis_url="redis://nowhere")
    return json.loads(json.dumps(create_app(settings).openapi()))


def fields() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, schema in document()["components"]["schemas"].items():
        for field, about in schema.get("properties", {}).items():
            yield name.rpartition("__")[2], field, about


def of_requests() -> set[str]:
    """Return the schemas that bodies of requests have, at any depth."""
    found: set[str] = set()
    seen: list[Any] = [operation.get("requestBody") for _, operation in operations()]
    while seen:
        one = seen.pop()
        if isinstance(one, dict):
            name = str(one.get("$ref", "")).rpartition("/")[2]
            if name and name not in found:
                found.add(name)
                seen.append(document()["components"]["schemas"][name])
            seen += one.values()
        elif isinstance(one, list):
            seen += one
    return found


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def bodies() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, operation in operations():
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            yield name, kind, content


def examples_of(content: dict[str, Any]) -> list[Any]:
    """The examples of a body: beside its schema, or in it."""
    if "example" in content:
        return [content["example"]]
    if "examples" in content:
        return [example["value"] for example in content["examples"].values()]
    name = content["schema"].get("$ref", "").rpartition("/")[2]
    return list(document()["components"]["schemas"].get(name, {}).get("examples", ()))


def test_every_field_of_a_request_parameter_and_model_is_described() -> None:
    schemas = document()["components"]["schemas"]
    asked = ((name, schemas[name].get("properties", {})) for name in of_requests())
    missing = [f"{name}.{field}" for name, found in asked for field, about in found.items() if not described(about)]
    missing += [name for name, schema in document()["components"]["schemas"].items() if not described(schema)]
    for name, operation in operations():
        missing += [f"{name}: {p['name']}" for p in operation.get("parameters", ()) if not p.get("description")]
        missing += [name] if not (operation.get("summary") and operation.get("description")) else []
    for name, _, content in bodies():
        missing += [f"{name}: {f}" for f, a in content["schema"].get("properties", {}).items() if not described(a)]
    assert missing == [], "say it beside the field, or in producer_api/http/openapi_text.py"


def described(schema: dict[str, Any]) -> bool:
    return bool(schema.get("description"))


def test_the_description_beside_a_field_is_kept() -> None:
    name = next(name for name in FIELDS if "." not in name)
    properties = {name: {"description": "its own"}, "mode": {"const": "x"}}
    shown = describe({"components": {"schemas": {"Any": {"properties": properties}}}, "paths": {}})
    described = shown["components"]["schemas"]["Any"]["properties"]
    assert [described[field]["description"] for field in (name, "mode")] == ["its own", "always `x`"]


@pytest.mark.whole
def test_no_word_is_left_over() -> None:
    by_name = {about.get("description"): field for _, field, about in fields()}
    by_model = {f"{model}.{field}" for model, field, _ in fields()}
    unused = [name for name, words in FIELDS.items() if "." not in name and by_name.get(words) is None]
    unused += [name for name in FIELDS if "." in name and name not in by_model]
    told = {p["name"]: p.get("description") for _, operation in operations() for p in operation.get("parameters", ())}
    unused += [name for name in PARAMETERS if name not in told]
    unused += sorted(EXAMPLES.keys() - {name for name, _ in operations()})
    assert unused == []


def test_every_body_has_an_example_that_its_schema_takes(subtests: pytest.Subtests) -> None:
    # No parameters: each process that collects the tests would make the document, which takes seconds.
    for name, kind, content in bodies():
        with subtests.test(name=name, kind=kind):
            examples = examples_of(content)
            assert examples, "give the model `examples`, or the body one in producer_api/http/openapi_text.py"
            whole = {**content["schema"], "components": document()["components"]}
            validator = jsonschema_rs.validator_for(whole)
            for example in examples:
                assert [error.message for error in validator.iter_errors(example)] == []
