"""Steps with retrieval, and the search steps before them. No services."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.encoders.embed.inputs import Embedder
from headrace.features.flows.retrieval_steps import as_flow, as_one, retrieval_of, search_step
from headrace.features.retrieval import questions
from headrace.store.errors import Conflict, InvalidRequest, NotFound, NoWorker
from headrace.store.payloads.prompt_reference import PromptUse, TemplatePlace
from headrace.store.payloads.retrieval import Retrieval
from tests.producer_api.submission.steps.making import QUESTION, STORES, VERSION, parts, request, step
from tests.refusals import Naming, refusal


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
    ("fields", "named", "code", "param"),
    [
        (
            {"retrieval": {"vector_store_ids": []}},
            "1 item",
            "invalid_value",
            "retrieval.vector_store_ids",
        ),
        ({"retrieval": 5}, "object", "invalid_value", "retrieval"),
        ({"retrieval": STORES, "n": 2}, "`n`", "invalid_value", "n"),
        (
            {"retrieval": STORES, "input": {"messages": [QUESTION], "tools": [{}]}},
            "`tools`",
            "invalid_value",
            "input.tools",
        ),
        (
            {"retrieval": STORES | {"ranking_options": {"ranker": "best"}}},
            "`auto`",
            "unsupported_parameter",
            "retrieval.ranking_options.ranker",
        ),
    ],
)
def test_a_retrieval_that_cannot_be_followed_is_refused(
    fields: dict[str, Any], named: str, code: str, param: str
) -> None:
    assert refusal(retrieval_of, step(**fields))[1:] == (Naming(named), code, param)


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

    def find(self, _db: object, tenant_id: str, store_id: str) -> Any:
        if tenant_id != "acme" or store_id not in self.versions:
            raise NotFound(f"no vector store {store_id}")
        model, number = self.versions[store_id]
        return SimpleNamespace(model=model, model_version=number)

    def touch(self, _db: object, _tenant_id: str, store_id: str) -> None:
        self.touched.append(store_id)


def test_a_search_embeds_the_last_question_with_the_version_of_the_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    stores = Stores(vs_1=("org/vectors", 2), vs_2=("org/vectors", 2), vs_3=("other", 1))
    monkeypatch.setattr(questions, "vector_stores", stores)
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
    prompted = parts(vectors)
    prompted.catalog.task_settings = lambda _: Embedder(512, 8, prompts={"query": "query: "})
    assert search_step(prompted, "acme", step(), request(), wanted).own_fields == {
        "truncate": True,
        "prompt_name": "query",
    }
    reference = {"$from": "b.output.text"}
    made = search_step(
        parts(vectors), "acme", step("a", {"messages": [{"role": "user", "content": reference}]}), request(), wanted
    )
    assert made.input == {"texts": [reference]}
    filled = search_step(parts(vectors), "acme", step("a", {"template": {"id": "p"}}), request(), wanted)
    assert filled.input == {"texts": ["What?"]}
    for content in (" ", [{"type": "text", "text": "x"}]):
        asked = step("a", {"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": content}]})
        assert refusal(search_step, parts(vectors), "acme", asked, request(), wanted)[1:] == (
            Naming("`retrieval`"),
            "invalid_value",
            "input.messages",
        )
    asked = step()
    gone = Retrieval.model_validate({"vector_store_ids": ["vs_1", "vs_9"]})
    assert refusal(search_step, parts(vectors), "acme", asked, request(), gone)[3] == "retrieval.vector_store_ids[1]"
    mixed = Retrieval.model_validate({"vector_store_ids": ["vs_3", "vs_1"]})
    kind, message, *place = refusal(search_step, parts(vectors), "acme", asked, request(), mixed)
    assert (kind, place) == (InvalidRequest, ["invalid_value", "retrieval.vector_store_ids"])
    assert "(org/vectors@2, other@1)" in message
    kind, message, *place = refusal(search_step, parts(), "acme", asked, request(), wanted)
    assert (kind, place) == (Conflict, ["conflict", "retrieval.vector_store_ids"])
    assert "org/vectors@2" in message
