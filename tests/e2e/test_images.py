"""A live server and a worker process: images by the routes, natively, in a batch, and as uploaded files."""

from base64 import b64decode
from typing import Any

import httpx2
import pytest

from headrace.features.encoders.encode_jobs import numbers_of
from headrace.features.encoders.fake_encoders import fake_pixels, fake_scores
from headrace.features.images.classify.inputs import FAKE
from headrace.models.catalog import register
from headrace.models.fakes.fake_encoder import fake_vector
from headrace.prompts.vision.pictures import read_picture
from headrace.store.db.database import Database
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.e2e.test_classify import ended_batch
from tests.e2e.test_embeddings import calling, worker
from tests.models.runners.tiny_images import data_url, encoded, picture
from tests.processes import StartProcess

FILES = [encoded(picture(1)), encoded(picture(2, (90, 30)), "JPEG")]
URLS = [data_url(content) for content in FILES]
PIXELS = [fake_pixels(read_picture(content, "image")) for content in FILES]
WAITING: Any = {"headers": {"Prefer": "wait=60"}}


@pytest.mark.full
def test_labels_by_the_route_natively_and_in_a_batch(
    settings: Settings, db: Database, start_process: StartProcess
) -> None:
    register(db, "vit", "fake-image-classifier", "auto", actor="tests")
    with (
        calling(settings, db, api_keys.create_tenant(db, "acme")) as client,
        worker(start_process, settings, "vit"),
    ):
        uploaded = client.files.create(file=("mill.jpg", FILES[1]), purpose="vision")
        body = {"model": "vit", "images": [URLS[0], {"file_id": uploaded.id}]}
        answer = client.post("/images/classify", body=body, cast_to=httpx2.Response).json()
        unknown = {"file_id": "file-unknown"}
        native = {"task": "image_classify", "model": "vit", "input": {"images": [unknown, URLS[1]]}, "top_k": 1}
        job = client.post("/jobs", body=native, options=WAITING, cast_to=httpx2.Response).json()
        native["input"] = {"images": [unknown]}
        failed = client.post("/jobs", body=native, options=WAITING, cast_to=httpx2.Response).json()
        in_batch = ended_batch(client, "/v1/images/classify", body)
    for pixels, one in zip(PIXELS, answer["data"], strict=True):
        expected = dict(zip(FAKE.labels, numbers_of(fake_scores(pixels, len(FAKE.labels))), strict=True))
        assert {score["label"]: score["score"] for score in one["scores"]} == pytest.approx(expected)
        assert one["label"] == max(expected, key=expected.__getitem__)
    assert answer["usage"] == {"images": 2, "total_tokens": 2 * FAKE.num_tokens}
    assert in_batch["data"] == answer["data"]
    assert job["output"]["classifications"] == [[], answer["data"][1]["scores"][:1]]
    (reason,) = job["output"]["failed"]
    assert (reason["index"], reason["code"]) == (0, "image_unavailable")
    assert (failed["status"], failed["error"]["code"]) == ("failed", "image_unavailable")


@pytest.mark.full
def test_vectors_and_labels_in_words(settings: Settings, db: Database, start_process: StartProcess) -> None:
    register(db, "clip", "fake-encoder", "auto", actor="tests")
    with (
        calling(settings, db, api_keys.create_tenant(db, "acme")) as client,
        worker(start_process, settings, "clip"),
    ):
        images: Any = [{"image": url} for url in URLS]
        vectors = client.embeddings.create(model="clip", input=images, dimensions=4, encoding_format="base64").data
        assert len(client.embeddings.create(model="clip", input="a mill").data[0].embedding) == 8
        body = {"model": "clip", "images": URLS, "candidate_labels": ["a mill", "bread"]}
        found = client.post("/images/zero_shot", body=body, cast_to=httpx2.Response).json()
        given = {"images": [{"file_id": "file-unknown"}, URLS[1]], "candidate_labels": body["candidate_labels"]}
        native = {"task": "image_zero_shot", "model": "clip", "input": given}
        job = client.post("/jobs", body=native, options=WAITING, cast_to=httpx2.Response).json()
    assert job["output"]["classifications"] == [[], found["data"][1]["scores"]]
    assert [b64decode(str(one.embedding)) for one in vectors] == [fake_vector(pixels, 4) for pixels in PIXELS]
    for one in found["data"]:
        assert sum(score["score"] for score in one["scores"]) == pytest.approx(1)
        assert {score["label"] for score in one["scores"]} == {"a mill", "bread"}
