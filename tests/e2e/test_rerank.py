"""A live server and a real worker process: scores by the route, natively and in a batch."""

import json
import time
from pathlib import Path

import httpx2
import pytest
import torch

from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.e2e.test_embeddings import calling, worker
from tests.features.encoders.test_cross_encoder import DOCUMENTS, QUERY, build_cross_encoder, reference_scores
from tests.processes import StartProcess


@pytest.mark.full
def test_scores_by_the_route_natively_and_in_a_batch(
    settings: Settings, db: Database, tmp_path: Path, start_process: StartProcess
) -> None:
    folder = build_cross_encoder("bert", tmp_path / "bert")
    register(db, "reranker", str(folder), "float32", actor="tests")
    expected = torch.tensor(reference_scores(folder, QUERY, DOCUMENTS)).sigmoid().tolist()
    best_first = sorted(range(len(DOCUMENTS)), key=lambda index: -expected[index])
    body = {"model": "reranker", "query": QUERY, "documents": [*DOCUMENTS[:3], {"text": DOCUMENTS[3]}]}
    with calling(settings, db, api_keys.create_tenant(db, "acme")) as client:
        line = {"custom_id": "a", "method": "POST", "url": "/v1/rerank", "body": body}
        with worker(start_process, settings, "reranker", device="cpu"):
            answer = client.post("/rerank", body=body, cast_to=httpx2.Response).json()
            first = client.post(
                "/rerank", body={**body, "top_n": 1, "return_documents": True}, cast_to=httpx2.Response
            ).json()
            native = client.post(
                "/jobs",
                body={"task": "rerank", "model": "reranker", "input": {"query": QUERY, "documents": DOCUMENTS}},
                options={"headers": {"Prefer": "wait=60"}},
                cast_to=httpx2.Response,
            ).json()
            pairs = {"model": "reranker", "text_1": QUERY, "text_2": DOCUMENTS}
            score = client.post("/score", body=pairs, cast_to=httpx2.Response).json()
            file = client.files.create(file=("a.jsonl", json.dumps(line).encode()), purpose="batch")
            batch = client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/rerank",  # type: ignore[arg-type]  # the client knows OpenAI's endpoints only
                completion_window="24h",
            )
            until = time.monotonic() + 60
            while batch.status not in ("completed", "failed") and time.monotonic() < until:
                time.sleep(0.2)
                batch = client.batches.retrieve(batch.id)
        output = json.loads(client.files.content(batch.output_file_id or "").text)
    assert [result["index"] for result in answer["results"]] == best_first
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == pytest.approx([expected[index] for index in best_first], abs=2e-6)
    assert first["results"] == [{**answer["results"][0], "document": {"text": DOCUMENTS[best_first[0]]}}]
    assert native["output"]["results"] == answer["results"]
    assert [one["score"] for one in score["data"]] == pytest.approx(expected, abs=2e-6)
    assert answer["usage"]["prompt_tokens"] == native["usage"]["input_tokens"] > 0
    assert output["response"]["body"]["results"] == answer["results"]
