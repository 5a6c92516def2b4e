"""What requests of images may ask: bad images name the field that was sent, and nothing is stored."""

import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest

from headrace.features.images.classify.task import ImageClassifyPayload
from headrace.features.images.zero_shot.task import ImageZeroShotRequest
from headrace.features.response_cache.lookup import has_one_answer
from headrace.models.catalog import register
from headrace.producer_api.tasks.registry import read_task
from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.payloads.conversation import EXAMPLE_IMAGE, MAX_IMAGES
from headrace.store.tasks.registry import TASKS

SERVER = "https://example.com/mill.jpg"
TEXT = "data:image/png;base64,YSB0ZXh0"
CUT = EXAMPLE_IMAGE[:42]  # within its header
BODIES: dict[str, dict[str, Any]] = {
    "/v1/images/classify": {"model": "image_classify", "images": [EXAMPLE_IMAGE]},
    "/v1/images/zero_shot": {"model": "embed", "images": [EXAMPLE_IMAGE], "candidate_labels": ["a mill", "bread"]},
    "/v1/embeddings": {"model": "embed", "input": [{"image": EXAMPLE_IMAGE}]},
}
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("/v1/images/classify", {"images": []}, "invalid_value", "images"),
    ("/v1/images/classify", {"images": [EXAMPLE_IMAGE] * (MAX_IMAGES + 1)}, "invalid_value", "images"),
    ("/v1/images/classify", {"images": [EXAMPLE_IMAGE, {}]}, "invalid_value", "images[1]"),
    ("/v1/images/classify", {"images": [{"url": SERVER, "file_id": "file-1"}]}, "invalid_value", "images[0]"),
    ("/v1/images/classify", {"images": [EXAMPLE_IMAGE, TEXT]}, "invalid_image", "images[1]"),
    ("/v1/images/classify", {"images": [EXAMPLE_IMAGE, {"url": CUT}]}, "invalid_image", "images[1]"),
    ("/v1/images/classify", {"images": [SERVER, "https://10.0.0.1/x.png"]}, "invalid_image", "images[1]"),
    ("/v1/images/classify", {"images": ["ftp://example.com/x.png"]}, "invalid_image", "images[0]"),
    ("/v1/images/classify", {"top_k": 0}, "invalid_value", "top_k"),
    ("/v1/images/classify", {"model": "classify"}, "invalid_value", "model"),
    ("/v1/images/zero_shot", {"images": [TEXT]}, "invalid_image", "images[0]"),
    ("/v1/images/zero_shot", {"candidate_labels": ["x", "x"]}, "invalid_value", "candidate_labels"),
    ("/v1/images/zero_shot", {"candidate_labels": ["x", "y" * 1001]}, "invalid_value", "candidate_labels[1]"),
    ("/v1/images/zero_shot", {"hypothesis_template": "a photo"}, "invalid_value", "hypothesis_template"),
    ("/v1/images/zero_shot", {"model": "image_classify"}, "invalid_value", "model"),
    ("/v1/embeddings", {"input": [{"image": EXAMPLE_IMAGE}, "x"]}, "invalid_value", "input[1]"),
    ("/v1/embeddings", {"input": [{"image": EXAMPLE_IMAGE}, {"image": TEXT}]}, "invalid_image", "input[1]"),
    ("/v1/embeddings", {"input": [{"picture": EXAMPLE_IMAGE}]}, "invalid_value", "input[0]"),
]


@pytest.fixture
def models(db: Database) -> None:
    for task in ("embed", "classify", "image_classify"):
        register(db, task, TASKS[task].fake_runner, "auto", actor="tests")


@pytest.mark.usefixtures("models")
def test_what_is_refused_names_what_was_sent_and_nothing_is_stored(
    api: httpx2.Client, db: Database, tenant: str
) -> None:
    for url, body, code, param in REFUSED:
        answer = api.post(url, json=BODIES[url] | body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"] or "") == (400, code, param), (url, body, error)
        assert "input.images" not in error["message"]
    assert jobs.list_jobs(db, tenant) == []


def test_a_line_of_a_batch_asks_for_the_same_labels_in_words() -> None:
    sent = {"images": [SERVER], "candidate_labels": ["a", "bc"], "hypothesis_template": "a drawing of {}"}
    job = read_task("/v1/images/zero_shot", {"model": "embed", **sent, "top_k": 1}).job
    asked = {"task": "image_zero_shot", "model": "embed", "input": sent, "top_k": 1, "service_class": "interactive"}
    assert job == ImageZeroShotRequest.model_validate(asked)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("body", "num_tokens"),
    [
        ({"task": "image_classify", "model": "image_classify", "input": {"images": [EXAMPLE_IMAGE, SERVER]}}, 100),
        ({"task": "embed", "model": "embed", "input": {"images": [{"file_id": "file-1"}]}}, 50),
        (
            {
                "task": "image_zero_shot",
                "model": "embed",
                "input": {"images": [SERVER], "candidate_labels": ["a", "bc"], "hypothesis_template": "{}"},
            },
            53,
        ),
    ],
)
def test_a_native_job_keeps_the_images_as_they_were_sent(
    api: httpx2.Client, db: Database, tenant: str, body: dict[str, Any], num_tokens: int
) -> None:
    answer = api.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    (job,) = jobs.list_jobs(db, tenant)
    assert (job.task, job.input_tokens) == (body["task"], num_tokens)
    stored = jobs.get(db, tenant, answer.json()["id"]).payload["input"]["images"]
    assert stored == [{"url": one} if isinstance(one, str) else one for one in body["input"]["images"]]


@pytest.mark.usefixtures("models")
def test_a_policy_for_inputs_lets_no_image_in(api: httpx2.Client, db: Database, tenant: str) -> None:
    rule = {"id": "pii", "kinds": ["email"], "action": "redact", "stage": "input"}
    for policy in ({"document": {"rules": [rule]}}, {"model": "image_classify", "document": {"rules": []}}):
        assert api.put("/v1/policies", json=policy).status_code == 200
    body = {"task": "embed", "model": "embed", "input": {"images": [EXAMPLE_IMAGE]}}
    error = api.post("/v1/jobs", json=body).json()["error"]
    assert (error["param"], "policy" in error["message"]) == ("input", True)
    body |= {"task": "image_classify", "model": "image_classify"}
    assert api.post("/v1/jobs", json=body).status_code == 202


@pytest.mark.parametrize("url", BODIES)
def test_a_body_with_images_may_be_larger_than_others(api: httpx2.Client, url: str) -> None:
    content = json.dumps(BODIES[url] | {"model": "nobody"}).encode() + b" " * (2 << 20)
    answer = api.post(url, content=content, headers={"Content-Type": "application/json"})
    assert answer.json()["error"]["code"] == "model_not_found"


@pytest.mark.usefixtures("models")
def test_the_examples_of_the_page_are_accepted(api: httpx2.Client, db: Database) -> None:
    page = (Path(__file__).parents[3] / "docs" / "vision.md").read_text()
    examples = re.findall(r"^`POST (/v1/[\w/]+)`\n\n```json\n(.*?)```", page, re.MULTILINE | re.DOTALL)
    assert len(examples) == 4
    names = {"vit": "image_classify", "clip": "embed"}
    for url, text in examples:
        body = json.loads(text)
        body["model"] = names[body["model"]]
        job = body if url == "/v1/jobs" else read_task(url, body).job.model_dump(mode="json", exclude_none=True)
        answer = api.post("/v1/jobs", json=job)
        assert answer.status_code == 202, (url, answer.text)


def test_the_response_cache_does_not_answer_for_a_url() -> None:
    for image, is_kept in ((EXAMPLE_IMAGE, True), ({"file_id": "file-1"}, True), (SERVER, False)):
        payload = ImageClassifyPayload.model_validate({"input": {"images": [image]}})
        assert has_one_answer(payload, None) is is_kept
