"""Requests, steps and parts of the API that tests of single steps are made of."""

from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from headrace.store.errors import NotFound
from headrace.store.registry.models import ModelVersion
from headrace.store.tasks.flow import FlowStepBody
from headrace.store.tasks.generate import GenerateRequest
from headrace.store.tenants.api_keys import Principal

AT = datetime(2026, 11, 29, tzinfo=UTC)
VERSION = ModelVersion("tiny", 3, "generate", "fake", "fake:tiny", "f00d", "float32", 512, {}, AT, None)
CALLER = replace(VERSION, model="tools", version=1, task="call_tool")
PRINCIPAL = Principal("acme", "key_1", frozenset())
QUESTION = {"role": "user", "content": "What?"}


def request(source: dict[str, Any] | None = None, **fields: Any) -> GenerateRequest:
    return GenerateRequest.model_validate({"model": "tiny", "input": source or {"messages": [QUESTION]}} | fields)


def step(name: str = "a", source: dict[str, Any] | None = None, **fields: Any) -> FlowStepBody:
    given = {"name": name, "model": "tiny", "input": source or {"messages": [QUESTION]}}
    return FlowStepBody.model_validate(given | fields)


STORES = {"vector_store_ids": ["vs_1"]}


def parts(found: ModelVersion | None = None) -> Any:
    def resolve(name: str) -> ModelVersion:
        if found is None:
            raise NotFound(f"no model {name}")
        return found

    catalog = SimpleNamespace(resolve=resolve, task_settings=lambda _: SimpleNamespace(prompts={}))
    return SimpleNamespace(db=None, catalog=catalog, settings=SimpleNamespace(max_steps=16))
