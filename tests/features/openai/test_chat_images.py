"""Images in chat completions, responses, messages and jobs: what is stored, what is refused, and for which models."""

from typing import Any

import httpx2
import pytest
import redis
from openai import OpenAI
from sqlalchemy import text

from headrace.features.policy import policies
from headrace.features.policy.input_policy import applied, compiled
from headrace.features.response_cache.lookup import has_one_answer
from headrace.features.rollouts.changes import NewRollout, start
from headrace.features.rollouts.rollouts import Step
from headrace.models import catalog
from headrace.policy.documents import PolicyDocument
from headrace.store.db import presence
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.jobs import jobs
from headrace.store.payloads.conversation import MAX_IMAGES, ChatMessage
from headrace.store.payloads.job_payload import EVERY_MODEL
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.registry.models import register_version
from headrace.store.tasks.generate import GeneratePayload, GenerateRequest
from tests.png import png, url_of
from tests.processes import wait_for as wait_until
from tests.producer_api.calling import error_of, num_jobs
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer

ONE, TWO = url_of(png(1)), url_of(png(2))
SERVER = "https://example.com/mill.jpg"
TEXT: dict[str, Any] = {"type": "text", "text": "Which is older, "}
AND: dict[str, Any] = {"type": "text", "text": " or"}


def shown(url: str, **more: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def chat(*parts: dict[str, Any], model: str = "seeing", role: str = "user") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": role, "content": parts}], "max_tokens": 8, "job": ON}


ON = {"on_disconnect": "continue"}
_WITH_FALLBACK = text(
    """SELECT (j.payload #>> '{}')::json AS now, (f.payload #>> '{}')::json AS back
    FROM jobs AS j LEFT JOIN job_fallbacks AS f ON job_id = id WHERE id = :id"""
)
RULE = {"id": "mail", "kinds": ["email"], "action": "redact", "stage": "input"}


def register(db: Database, *accepts: str, digest: str) -> None:
    """Register the next version of the model, behind a server."""
    spec = EngineSpec.model_validate(
        {"kind": EngineKind.OPENAI, "url": "http://127.0.0.1:9", "served_model": digest, "accepts": accepts}
    )
    register_version(
        db,
        model="seeing",
        runner="openai",
        source="http://127.0.0.1:9",
        digest=digest * 64,
        dtype="auto",
        context_window=4096,
        actor="tests",
        engine=spec,
    )


@pytest.fixture(autouse=True)
def seeing(db: Database) -> None:
    register(db, "images", digest="d")


@pytest.mark.uses("anthropic")
def test_what_cannot_be_shown_to_a_model_is_refused_and_nothing_is_stored(api: httpx2.Client, db: Database) -> None:
    refused: list[tuple[str, dict[str, Any], str, str]] = [
        ("/v1/chat/completions", chat(shown(ONE), model="tiny"), "messages", "tiny takes"),
        ("/v1/chat/completions", chat(TEXT, shown(ONE), role="system"), "messages[0].content[1].type", "of the user"),
        ("/v1/chat/completions", chat(shown(ONE, detail="huge")), "messages[0].images[0].detail", "'high'"),
        ("/v1/chat/completions", chat(*[shown(ONE)] * (MAX_IMAGES + 1)), "messages[0].images", f"{MAX_IMAGES} items"),
        ("/v1/chat/completions", chat(shown(ONE), shown(url_of(b"a text"))), "messages.images[1]", "is no PNG"),
        ("/v1/chat/completions", chat(shown(url_of(png(1)[:20]))), "messages.images[0]", "cut off"),
        ("/v1/chat/completions", chat(shown(url_of(png(1, said=9000)))), "messages.images[0]", "9000 x 9000 pixels"),
        ("/v1/chat/completions", chat(shown("https://10.0.0.1/x.png")), "messages.images[0]", "not public"),
        ("/v1/chat/completions", chat(TEXT | {"text": "x" * 40_000}, shown(ONE)), "messages", "too long"),
        (
            "/v1/responses",
            {"model": "tiny", "input": [{"role": "user", "content": [{"type": "input_image", "image_url": ONE}]}]},
            "input",
            "no images",
        ),
        (
            "/v1/responses",
            {"model": "seeing", "input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].image_url",
            "is required",
        ),
        (
            "/v1/messages/count_tokens",
            {
                "model": "tiny",
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": SERVER}}]}
                ],
            },
            "messages",
            "no images",
        ),
    ]
    for url, body, param, said in refused:
        answer = api.post(url, json=body)
        error = error_of(answer)
        assert answer.status_code == 400, (url, answer.text)
        assert error.get("param", param) == param, (param, error)
        assert said in error["message"], (said, error)
    assert num_jobs(db) == 0


def test_a_policy_for_inputs_lets_no_image_in_and_one_for_outputs_leaves_them_as_they_are() -> None:
    images = [{"url": ONE}]
    messages = [{"role": "user", "content": "mail@example.com", "images": images}]
    request = GenerateRequest.model_validate({"model": "seeing", "input": {"messages": messages}})
    rule = {"id": "pii", "kinds": ["email"], "action": "redact"}
    inputs, outputs = (
        compiled(PolicyDocument.model_validate({"rules": [rule | {"stage": stage}]}), "")
        for stage in ("input", "output")
    )
    with pytest.raises(InvalidRequest, match="images"):
        applied(inputs, request)
    assert applied(outputs, request).request == request


@pytest.mark.uses("anthropic")
def test_each_face_stores_the_same_job_and_shows_its_images_again(
    api: httpx2.Client, openai: OpenAI, db: Database, tenant: str, redis_client: redis.Redis
) -> None:
    worker = ScriptedWorker(db, redis_client, "seeing@1")
    blocks = [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ONE.partition(",")[2]}},
              {"type": "image", "source": {"type": "file", "file_id": "file-1"}}]  # fmt: skip
    items = [{"type": "input_image", "image_url": ONE}, {"type": "input_image", "file_id": "file-1", "detail": "low"}]
    with worker.serve(lambda _: ["the mill"]):
        parts = [TEXT, shown(ONE), AND, shown(SERVER, detail="low")]
        chatted = openai.chat.completions.create(**chat_arguments(parts), store=True)
        answered = openai.responses.create(
            model="seeing", input=[{"role": "user", "content": [{"type": "input_text", "text": "Which?"}, *items]}]
        )
        again = openai.responses.create(model="seeing", input="Why?", previous_response_id=answered.id)
        message = {"model": "seeing", "max_tokens": 8, "messages": [{"role": "user", "content": [*blocks, TEXT]}]}
        assert api.post("/v1/messages", json=message).status_code == 200
    newest, continued, second, first = jobs.list_jobs(db, tenant)
    payloads = [jobs.get(db, tenant, job.id).payload["input"]["messages"] for job in (first, second, continued, newest)]
    assert payloads[0] == [
        {
            "role": "user",
            "content": "Which is older,  or",
            "images": [{"url": ONE, "at": 16}, {"url": SERVER, "detail": "low", "at": 19}],
        }
    ]
    of_response = {
        "role": "user",
        "content": "Which?",
        "images": [{"url": ONE, "at": 6, "detail": "auto"}, {"file_id": "file-1", "detail": "low", "at": 6}],
    }
    assert payloads[1] == [of_response]
    assert payloads[2][0] == of_response, "a response that continues it has its images too"
    assert payloads[3] == [
        {"role": "user", "content": TEXT["text"], "images": [{"url": ONE, "at": 0}, {"file_id": "file-1", "at": 0}]}
    ]
    assert first.input_tokens == len("user: Which is older,  or\n") // 4 + 1 + 576 + 85
    shown_again = api.get(f"/v1/chat/completions/{chatted.id}/messages").json()["data"][0]
    assert (shown_again["content_parts"], "images" in shown_again) == (parts, False)
    listed = api.get(f"/v1/responses/{again.id}/input_items?order=asc").json()["data"][0]["content"]
    assert listed == [{"type": "input_text", "text": "Which?"}, items[0] | {"detail": "auto"}, items[1]]


def chat_arguments(parts: Any) -> Any:
    return {"model": "seeing", "messages": [{"role": "user", "content": parts}], "max_tokens": 8}


def test_the_response_cache_knows_an_answer_by_its_images_but_not_by_a_url() -> None:
    def is_kept(image: dict[str, str]) -> bool:
        messages = [{"role": "user", "content": "?", "images": [image]}]
        payload = GeneratePayload.model_validate({"input": {"messages": messages}, "sampling": {"temperature": 0}})
        return has_one_answer(payload, None)

    assert [is_kept(one) for one in ({"url": ONE}, {"file_id": "file-1"}, {"url": SERVER})] == [True, True, False]


def test_images_stay_at_their_places_in_the_text() -> None:
    images = [{"url": TWO, "at": 99}, {"url": ONE, "at": 2}]
    message = ChatMessage.model_validate({"role": "user", "content": "abcd", "images": images})
    places = [part if isinstance(part, str) else part.url for part in message.parts]
    assert places == ["ab", ONE, "cd", TWO]
    assert [part if isinstance(part, str) else part.url for part in message.after("xy").parts] == ["xyab", *places[1:]]


@pytest.mark.parametrize(("accepts", "version"), [(("images",), 2), ((), 1)])
def test_a_rollout_gives_images_to_a_candidate_that_takes_them(
    api: httpx2.Client, db: Database, server: ApiServer, accepts: tuple[str, ...], version: int
) -> None:
    """Moved back, a job has its images again; one of texts alone goes to the candidate in any case."""
    register(db, *accepts, digest="e")
    presence.beat_worker(db, "worker", "seeing@2", None)
    with db.begin() as connection:
        connection.execute(text("UPDATE worker_processes SET seen_at = now() + interval '1 hour'"))
        connection.execute(text("UPDATE model_versions SET state = 'ready' WHERE model = 'seeing'"))
    wait_until(lambda: not server.runtime.live_processes.is_unserved("seeing@2"), "the API knows the worker")
    start(db, NewRollout("seeing", 2, [Step(100, hold_s=3600)]), "tests")
    images = [{"url": ONE, "at": 0}]
    body = {"model": "seeing", "input": {"messages": [{"role": "user", "content": "?"}]}, "sampling": {"max_tokens": 8}}
    assert api.post("/v1/jobs", json=body).json()["model_version"] == 2
    body["input"] = {"messages": [{"role": "user", "content": "?", "images": images}]}
    job = api.post("/v1/jobs", json=body).json()
    assert job["model_version"] == version
    with db.begin() as connection:
        kept = connection.execute(_WITH_FALLBACK, {"id": job["id"]}).one()
    shown = [one["input"]["messages"][0]["images"] for one in (kept.now, kept.back or kept.now)]
    assert shown == [images, images]


@pytest.mark.parametrize(
    ("task", "given"),
    [
        ("generate", {"messages": [{"role": "user", "content": "?", "images": [{"url": "https://10.0.0.1/x.png"}]}]}),
        ("image_classify", {"images": ["https://10.0.0.1/x.png"]}),
    ],
)
def test_the_images_of_a_step_are_checked_as_those_of_a_job(
    api: httpx2.Client, db: Database, task: str, given: dict[str, Any]
) -> None:
    model = (
        "seeing"
        if task == "generate"
        else catalog.register(db, "labels", "fake-image-classifier", "auto", actor="tests").model
    )
    one = {"task": task, "model": model, "input": given}
    alone, as_step = (api.post("/v1/jobs", json=body) for body in (one, {"steps": [one | {"name": "look"}]}))
    assert "not public" in error_of(alone)["message"]
    assert error_of(as_step)["code"] == error_of(alone)["code"] == "invalid_image"
    assert error_of(as_step)["param"] == f"steps[0].{error_of(alone)['param']}"
    assert num_jobs(db) == 0


def test_a_conversation_takes_images_and_gives_them_to_its_responses(
    api: httpx2.Client, openai: OpenAI, db: Database, tenant: str
) -> None:
    parts: Any = [{"type": "input_text", "text": "Which?"}, {"type": "input_image", "image_url": ONE, "detail": "low"}]
    talk = openai.conversations.create(items=[{"role": "user", "content": parts}]).id
    assert api.get(f"/v1/conversations/{talk}/items").json()["data"][0]["content"] == parts
    job_id = openai.responses.create(model="seeing", input="Why?", conversation=talk, background=True).id
    (first, second) = jobs.get(db, tenant, job_id.replace("resp_", "job_")).payload["input"]["messages"]
    assert first == {"role": "user", "content": "Which?", "images": [{"url": ONE, "detail": "low", "at": 6}]}
    assert second["content"] == "Why?"
    for image, param, said in (
        ({"image_url": "https://10.0.0.1/x.png"}, "", "not public"),
        ({"image_url": url_of(png(1)[:20])}, "", "cut off"),
        ({"image_url": ONE, "detail": "huge"}, ".detail", "'high'"),
        ({"image_url": ONE, "file_id": "file-1"}, "", "one of"),
    ):
        turn = {"role": "user", "content": [parts[0], {"type": "input_image", **image}]}
        refused = api.post(f"/v1/conversations/{talk}/items", json={"items": [turn]})
        error = error_of(refused)
        assert (refused.status_code, error["param"]) == (400, f"items[0].content[1]{param}"), refused.text
        assert said in error["message"]
    policies.put(db, tenant, EVERY_MODEL, {"version": 1, "rules": [RULE]}, "tests")
    wait_until(
        lambda: "images cannot" in api.post("/v1/conversations", json={"items": [turn_of(ONE)]}).text,
        "the policy reads no image",
    )


def turn_of(url: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
