"""The body and the answer of a task of another package, and the route that they make."""

from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from headrace.producer_api.tasks.own_task import own_routes
from headrace.store.errors import InvalidRequest
from headrace.store.tasks.own_task import spec_of
from headrace.tasks import Task
from tests.producer_api.answered_jobs import ended


class Words(BaseModel):
    text: str


class Mood(BaseModel):
    mood: str


DECLARED = Task(name="mood", input=Words, output=Mood, runner="a.b:load", example={"text": "x"})
ROUTES = own_routes(spec_of(DECLARED))
URL = "/v1/tasks/mood"


def read(**changes: Any) -> Any:
    return ROUTES.urls[URL]({"model": "tiny", "input": {"text": "hi"}, **changes})


def test_a_body_of_an_own_task_becomes_its_job() -> None:
    assert [*ROUTES.urls] == [URL]
    made = read(service_tier="flex", user="u", metadata={"k": 1}, job={"priority": 2}).job
    assert made.model_dump(mode="json", exclude_unset=True) == {
        "task": "mood",
        "model": "tiny",
        "input": {"text": "hi"},
        "service_class": "batch",
        "user": "u",
        "metadata": {"k": "1"},
        "priority": 2,
    }
    with pytest.raises(ValidationError):
        read(input={"text": 3})
    with pytest.raises(ValidationError):
        read(tone=1)


def test_an_answer_of_an_own_task_has_the_output_and_its_cost() -> None:
    job = replace(ended(""), output={"mood": "good"})
    answer = {
        "object": "task.result",
        "id": job.id,
        "model": "tiny@1",
        "output": {"mood": "good"},
        "usage": {"total_tokens": (job.usage or {})["input_tokens"]},
    }
    assert read().answer(job) == answer
    assert read().answer(replace(job, usage=None, input_tokens=9)) == answer | {"usage": {"total_tokens": 9}}


def test_an_error_of_an_own_task_names_the_field_as_it_was_sent() -> None:
    for param, shown in (("input.text", "input.text"), ("deadline_ms", "job.deadline_ms"), (None, None)):
        error = read().complain(InvalidRequest(f"`{param}` is wrong", param=param))
        assert (error.param, error.message) == (shown, f"`{shown}` is wrong")


def test_the_route_of_an_own_task_is_described_by_its_example() -> None:
    ((route,),) = (router.routes for router in ROUTES.routers)
    described: Any = route
    assert (described.path, described.methods, described.summary) == (URL, {"POST"}, "Run the task mood")
    assert described.response_model.__name__ == "MoodAnswer"
    assert described.response_model.model_fields["output"].annotation is DECLARED.output
    (body,) = described.dependant.body_params
    assert body.field_info.openapi_examples == {"mood": {"value": {"model": "mymodel", "input": {"text": "x"}}}}
    titled = own_routes(spec_of(replace(DECLARED, summary="Say the mood")))
    ((named,),) = (router.routes for router in titled.routers)
    assert vars(named)["summary"] == "Say the mood"
