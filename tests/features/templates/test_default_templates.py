"""Versions with a default prompt template: registered, put before conversations, and compared by a rollout."""

from typing import Any

import httpx2
import pytest

from headrace.features.rollouts.changes import NewRollout, start
from headrace.features.rollouts.rollouts import RolloutMode, Step
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.jobs import jobs
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.registry import models
from headrace.store.registry.models import ModelVersion, get_version
from tests.features.rollouts.test_rollout_routing import begin, serve
from tests.producer_api.calling import error_of
from tests.producer_api.serving import ApiServer

HI = {"messages": [{"role": "user", "content": "hi"}]}
TEMPLATE: dict[str, Any] = {
    "name": "guide",
    "instructions": "You know {{ city }}.",
    "variables": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture
def guide(api: httpx2.Client) -> dict[str, Any]:
    """A prompt with a variable, and a second one without."""
    assert api.post("/v1/prompts", json=TEMPLATE).status_code == 201
    made = api.post("/v1/prompts", json={"name": "brief", "instructions": "Be brief."})
    found: dict[str, Any] = made.json()
    return found


def register(api: httpx2.Client, model: str, **body: Any) -> httpx2.Response:
    return api.post(f"/v1/models/{model}/versions", json=body)


def submit(api: httpx2.Client, **body: Any) -> dict[str, Any]:
    answer = api.post("/v1/jobs", json={"model": "tiny", "input": HI, "sampling": {"max_tokens": 4}} | body)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def given(db: Database, tenant: str, job: dict[str, Any]) -> list[str]:
    """Return the texts of the messages that the model is given."""
    return [one["content"] for one in jobs.get(db, tenant, job["id"]).payload["input"]["messages"]]


def version_of(job: dict[str, Any]) -> tuple[int, str | None]:
    """Return the version of a job, and the name of its template."""
    return job["model_version"], None if job["template"] is None else job["template"]["name"]


@pytest.mark.usefixtures("guide", "model")
def test_a_template_makes_another_version_of_the_same_weights(api: httpx2.Client, db: Database) -> None:
    models.set_sampling(db, "tiny", 1, SamplingDefaults(temperature=0.2), "tests")
    city = {"id": "guide@1", "variables": {"city": "Rome"}}
    made = register(api, "tiny", files_of="tiny@1", prompt=city)
    assert made.status_code == 201, made.text
    shown = made.json()
    assert (shown["id"], shown["state"], shown["base"], shown["shares_weights"]) == ("tiny@2", "ready", "tiny@1", True)
    assert (shown["template"]["name"], shown["template"]["version"]) == ("guide", 1)
    assert register(api, "tiny", files_of="tiny@1", prompt=city).json()["id"] == "tiny@2", "the same one again"
    assert register(api, "tiny", files_of="tiny@2", prompt={"id": "brief"}).json()["base"] == "tiny@1"
    assert register(api, "tiny", files_of="tiny@2", prompt=None).json()["id"] == "tiny@1"
    other = get_version(db, "tiny", 2)
    assert (other.digest, other.sampling.temperature) == (get_version(db, "tiny", 1).digest, 0.2)
    assert error_of(api.post("/v1/model_versions/tiny@1/retire"))["code"] == "version_in_use"
    assert api.get("/v1/models/tiny@2").json()["parent"] is None, "it is no LoRA adapter"
    api.delete("/v1/prompts/guide")
    assert get_version(db, "tiny", 2).template == other.template, "the version has its own copy"


@pytest.mark.usefixtures("guide", "model", "encoder")
def test_a_template_that_cannot_come_first_is_refused(api: httpx2.Client, other_key: str, server: ApiServer) -> None:
    api.post("/v1/prompts", json={"name": "raw", "text": "Once"})
    for model, prompt, reason in (
        ("tiny", {"id": "guide"}, "city"),
        ("tiny", {"id": "raw"}, "`instructions` or `messages`"),
        ("tiny", {"id": "none"}, "prompt none"),
        ("org/vectors", {"id": "brief"}, "default template"),
    ):
        refused = register(api, model, files_of=f"{model}@1", prompt=prompt)
        assert reason in error_of(refused)["message"], refused.text
    with httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {other_key}"}, timeout=60) as other:
        assert register(other, "tiny", files_of="tiny@1", prompt={"id": "brief"}).status_code == 404, "another tenant's"
    assert len(api.get("/v1/models/tiny/versions").json()["data"]) == 1


@pytest.mark.usefixtures("guide")
def test_a_canary_compares_the_template_and_leaves_out_what_it_does_not_concern(
    db: Database, model: ModelVersion, tenant: str, server: ApiServer, api: httpx2.Client
) -> None:
    register(api, "tiny", files_of="tiny@1", prompt={"id": "brief"})
    with pytest.raises(InvalidRequest, match="canary"):
        start(db, NewRollout("tiny", 2, [Step(50, hold_s=1)], mode=RolloutMode.SHADOW), "tests")
    serve(db, server)
    rollout = begin(db, 100)
    divided = submit(api)
    assert (version_of(divided), given(db, tenant, divided)) == ((2, "brief"), ["Be brief.", "hi"])
    with db.begin() as connection:
        ((stored, other),) = connection.exec_driver_sql(
            "SELECT rollout_id, (f.payload #>> '{}')::json FROM jobs JOIN job_fallbacks AS f ON job_id = id"
        )
    assert (stored, [one["content"] for one in other["input"]["messages"]]) == (rollout.id, ["hi"]), "the way back"
    assert "template" not in other
    own = submit(api, input=HI | {"template": {"id": "guide", "variables": {"city": "Rome"}}})
    raw = submit(api, input={"prompt": "hi"})
    assert (version_of(own), version_of(raw)) == ((1, "guide"), (1, None))
    with db.begin() as connection:
        compared = connection.exec_driver_sql("SELECT id FROM jobs WHERE rollout_id IS NOT NULL").scalars().all()
    assert compared == [divided["id"]]
    named = submit(api, model="tiny@2", input=HI | {"template": {"id": "guide", "variables": {"city": "Rome"}}})
    assert given(db, tenant, named) == ["You know Rome.", "hi"], "its own takes the place of the default"


@pytest.mark.uses("anthropic")
@pytest.mark.usefixtures("guide")
def test_counted_tokens_include_the_default_template(
    db: Database, model: ModelVersion, server: ApiServer, api: httpx2.Client
) -> None:
    register(api, "tiny", files_of="tiny@1", prompt={"id": "brief"})
    serve(db, server)
    plain, longer = (
        api.post("/v1/messages/count_tokens", json={"model": name, "max_tokens": 4, **HI}).json()["input_tokens"]
        for name in ("tiny@1", "tiny@2")
    )
    assert longer > plain
