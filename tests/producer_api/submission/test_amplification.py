"""Small requests that once caused much work: bodies with many parts, and cheap refusals."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2
import pytest

from headrace.producer_api.app import create_app
from headrace.producer_api.http import middleware
from headrace.producer_api.http.requests import MOST_CONTAINERS, MOST_FIELDS, MOST_VALUES, check_counts
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.cases import of, some_of
from tests.producer_api.calling import PROMPT, error_of
from tests.producer_api.serving import ApiServer, serving

Schema = Mapping[str, Any]
Path = tuple[str, ...]

# A complaint for each branch of a union on the way to the field, and one for each field that is missing.
MOST_COMPLAINTS = 64
WRONG: list[Any] = [{}, [], 0, "x", None, True, {"a": 1}, ["x"]]


def _schema(document: Schema, schema: Schema) -> Schema:
    reference = schema.get("$ref")
    return schema if reference is None else document["components"]["schemas"][reference.rpartition("/")[2]]


def _branches(document: Schema, schema: Schema) -> Iterator[Schema]:
    schema = _schema(document, schema)
    below = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    if not below:
        yield schema
    for one in below:
        yield from _branches(document, one)


def _lists(document: Schema, schema: Schema, path: Path = ()) -> Iterator[Path]:
    """Every list and mapping of a body, by the fields on the way; ``[]`` is an item of the list before."""
    if len(path) > 8:
        return
    for branch in _branches(document, schema):
        if branch.get("type") == "array":
            yield path
            yield from _lists(document, branch.get("items", {}), (*path, "[]"))
        for name, field in branch.get("properties", {}).items():
            yield from _lists(document, field, (*path, name))
        if isinstance(branch.get("additionalProperties"), dict):
            yield path


def _body(path: Path, value: Any) -> Any:
    for step in reversed(path):
        value = [value] if step == "[]" else {step: value}
    return value


def _num_complaints(response: httpx2.Response) -> int:
    more = re.search(r"\(and (\d+) more\)", error_of(response)["message"])
    return 1 + (0 if more is None else int(more[1]))


@pytest.fixture
def unlimited(settings: Settings, model: ModelVersion) -> Iterator[ApiServer]:
    with serving(settings.model_copy(update={"requests_per_minute": 10**9, "keep_batches": "off"})) as server:
        yield server


@pytest.mark.full
def test_no_list_of_any_route_makes_many_complaints(
    unlimited: ApiServer, db: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Far more than any field takes, and few enough to try them all.
    many, document = 3000, unlimited.app.openapi()
    key = api_keys.create_key(db, tenant, "all", api_keys.SCOPES, actor="tests")
    found, num_tried = [], 0
    with httpx2.Client(base_url=unlimited.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        for route, operations in document["paths"].items():
            for method, operation in operations.items():
                content = operation.get("requestBody", {}).get("content", {}).get("application/json")
                if content is None:
                    continue
                target = re.sub(r"\{[^}]*\}", "x", route)
                for path in dict.fromkeys([(), *_lists(document, content["schema"])]):
                    for wrong in WRONG:
                        # The list that is full of what it does not take, and the object that has as many fields.
                        for value in ([wrong] * many, dict.fromkeys(map(str, range(many)), wrong)):
                            if not path and isinstance(value, dict):
                                continue  # a body of unknown fields: those of ``MOST_FIELDS``
                            response = client.request(method, target, json=_body(path, value))
                            num_tried += 1
                            if response.status_code >= 500 or (
                                response.status_code >= 400 and _num_complaints(response) > MOST_COMPLAINTS
                            ):
                                found.append((method, route, path, wrong, response.text[:200]))
    assert not found
    assert num_tried > 500


def test_a_body_of_many_parts_is_refused_before_it_is_typed(server: ApiServer, key: str) -> None:
    too_many_fields = {"model": "tiny", **dict.fromkeys(map(str, range(MOST_FIELDS + 1)), 0)}
    bodies = {
        "lists and objects": b'{"model":"tiny","input":{"messages":[' + b",".join([b"{}"] * 340_000) + b"]}}",
        "fields of objects": json.dumps(too_many_fields).encode(),
        "values": b'{"model":"tiny","input":{"token_ids":[' + b",".join([b"1"] * (MOST_VALUES + 1)) + b"]}}",
    }
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with httpx2.Client(base_url=server.url, headers=headers, timeout=60) as client:
        routes = ("/v1/jobs", *of("responses", "/v1/responses/input_tokens"), *of("templates", "/v1/prompts"))
        for what, content in bodies.items():
            for route in routes:
                response = client.post(route, content=content)
                assert response.status_code == 400
                assert what in error_of(response)["message"]


def test_what_stands_in_texts_is_not_counted() -> None:
    texts = ["[{:," * (MOST_VALUES + 1), '"[' * (MOST_CONTAINERS + 1), "\\", '\\"', 'a\\\\"', ""]
    for text in texts:
        check_counts(json.dumps({"a": text, "b": [text, text]}).encode())
    # An unterminated string in which each quote could start another.
    with pytest.raises(InvalidRequest):
        check_counts(b"[" * (MOST_CONTAINERS + 1) + b'"\\' * 400_000)
    check_counts(b'"\\' * 400_000)


@some_of(
    2,
    ("route", "body"),
    [
        ("/v1/jobs", {"model": "tiny"}),
        ("/v1/jobs", PROMPT | {"metadata": {"a": 1}}),
        ("/v1/chat/completions", {"model": "tiny", "messages": [{}]}),
        ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "wizard", "content": "x"}]}),
        ("/v1/responses", {"model": "tiny", "previous_response_id": "resp_x"}),
        ("/v1/responses/input_tokens", {"model": "tiny"}),
        ("/v1/embeddings", {"model": "tiny", "input": []}),
    ],
)
def test_what_is_refused_is_counted_and_then_not_read_any_more(
    settings: Settings, model: ModelVersion, key: str, route: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    headers, two = {"Authorization": f"Bearer {key}"}, settings.model_copy(update={"requests_per_minute": 2})
    with serving(two) as server, httpx2.Client(base_url=server.url, headers=headers, timeout=60) as client:
        statuses = [client.post(route, json=body).status_code for _ in range(5)]
        monkeypatch.setattr(middleware, "check_counts", None)  # nothing looks at a body
        last = client.post(route, content=b"[", headers={"Content-Type": "application/json"})
    assert statuses[:2] in ([400, 400], [404, 404])
    assert statuses[-1] == 429
    assert (last.status_code, error_of(last)["code"]) == (429, "rate_limit_exceeded")
    assert int(last.headers["Retry-After"]) > 1


def test_every_write_is_counted(settings: Settings, model: ModelVersion, db: Database, tenant: str) -> None:
    document = create_app(settings).openapi()
    key = api_keys.create_key(db, tenant, "all", api_keys.SCOPES, actor="tests")
    writes = [
        (method.upper(), re.sub(r"\{[^}]*\}", "x", route))
        for route, operations in document["paths"].items()
        for method in operations
        if method != "get" and route.startswith("/v1/")
    ]
    assert len(writes) > 25
    headers = {"Authorization": f"Bearer {key}"}
    with serving(settings) as server, httpx2.Client(base_url=server.url, headers=headers, timeout=60) as client:
        for method, target in [*writes, ("DELETE", "/v1/nothing")]:
            response = client.request(method, target, json={} if method in ("POST", "PUT", "PATCH") else None)
            assert "x-ratelimit-remaining-requests" in response.headers, (method, target)
