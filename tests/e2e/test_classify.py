"""A live server and real worker processes: labels and entities by the route, natively and in a batch."""

import json
import struct
import time
from typing import Any

import httpx2
import pytest
from openai import BadRequestError, OpenAI

from headrace.features.encoders.classify.inputs import FAKE
from headrace.features.encoders.fake_encoders import fake_scores
from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.e2e.test_embeddings import calling, worker
from tests.processes import StartProcess

TEXTS = ["a mill on the river", ["a mill", "bread"], "x"]


def scores_of(text: str | list[str]) -> list[float]:
    whole = text if isinstance(text, str) else "".join(text)
    return list(struct.unpack("<3f", fake_scores(list(whole.encode()), 3)))


def ended_batch(client: OpenAI, url: str, body: dict[str, object]) -> dict[str, object]:
    """The answer of a batch with one line."""
    line = {"custom_id": "a", "method": "POST", "url": url, "body": body}
    file = client.files.create(file=("a.jsonl", json.dumps(line).encode()), purpose="batch")
    endpoint: Any = url  # the client knows OpenAI's endpoints only
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    until = time.monotonic() + 60
    while batch.status not in ("completed", "failed") and time.monotonic() < until:
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    answer: dict[str, object] = json.loads(client.files.content(batch.output_file_id or "").text)["response"]["body"]
    return answer


@pytest.mark.full
def test_labels_by_the_route_natively_and_in_a_batch(
    settings: Settings, db: Database, start_process: StartProcess
) -> None:
    register(db, "sentiment", "fake-classifier", "auto", actor="tests")
    body = {"model": "sentiment", "input": TEXTS}
    native = {"task": "classify", "model": "sentiment", "input": {"texts": TEXTS}, "top_k": 1}
    with (
        calling(settings, db, api_keys.create_tenant(db, "acme")) as client,
        worker(start_process, settings, "sentiment"),
    ):
        answer = client.post("/classify", body=body, cast_to=httpx2.Response).json()
        waiting: Any = {"headers": {"Prefer": "wait=60"}}
        job = client.post("/jobs", body=native, options=waiting, cast_to=httpx2.Response).json()
        in_batch = ended_batch(client, "/v1/classify", body)
        asked = {"model": "sentiment", "input": ["a mill on the river", "x"]}
        moderated = client.post("/moderations", body=asked, cast_to=httpx2.Response).json()["results"]
        with pytest.raises(BadRequestError) as refusal:
            client.moderations.create(model="sentiment", input=[{"type": "image_url", "image_url": {"url": "x"}}])
    assert (refusal.value.code, refusal.value.param) == ("unsupported_parameter", "input[0]")
    for text, result in zip(("a mill on the river", "x"), moderated, strict=True):
        scores = dict(zip(FAKE.labels, scores_of(text), strict=True))
        del scores["neutral"]
        assert result["category_scores"] == pytest.approx(scores)
        assert result["categories"] == {label: score >= 0.5 for label, score in scores.items()}
        assert result["flagged"] == any(result["categories"].values())
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    for text, one, best in zip(TEXTS, answer["data"], job["output"]["classifications"], strict=True):
        expected = scores_of(text)
        assert one["probs"] == pytest.approx(expected)
        assert one["label"] == one["scores"][0]["label"] == FAKE.labels[expected.index(max(expected))]
        assert best == one["scores"][:1]
        assert one["num_classes"] == 3
    assert answer["usage"]["prompt_tokens"] == job["usage"]["input_tokens"] == 31
    assert in_batch["data"] == answer["data"]


@pytest.mark.full
def test_entities_by_the_route(settings: Settings, db: Database, start_process: StartProcess) -> None:
    register(db, "ner", "fake-token-classifier", "auto", actor="tests")
    body = {"model": "ner", "input": "Ann é", "aggregation_strategy": "none", "ignore_labels": []}
    with (
        calling(settings, db, api_keys.create_tenant(db, "acme")) as client,
        worker(start_process, settings, "ner"),
    ):
        (found,) = client.post("/token_classify", body=body, cast_to=httpx2.Response).json()["data"]
    assert [(one["start"], one["end"]) for one in found["entities"]] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (4, 5)]
    assert [one["word"] for one in found["entities"]][:3] == ["A", "n", "n"]
