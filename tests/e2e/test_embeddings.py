"""The official client, a live server, a real worker process: vectors in all formats, also after a worker's death."""

import signal
import struct
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI
from openai.types import CreateEmbeddingResponse

from headrace.models.catalog import register
from headrace.models.fakes.fake_encoder import fake_vector
from headrace.models.families.model_folder import small_files
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.db.database import Database
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.features.encoders.test_encoder import MOST_APART, apart, build, reference
from tests.processes import Process, StartProcess, wait_for
from tests.producer_api.serving import serving
from tests.workers.conftest import Bench, Duties, worker_command, worker_environment

OWN = {"own_token_ids": True}
TEXTS = ["a mill on the river", "x", "bread and water and oil", "on"]


@contextmanager
def calling(settings: Settings, db: Database, tenant_id: str) -> Iterator[OpenAI]:
    """The official client of a live server, without retries, so that errors show."""
    key = api_keys.create_key(db, tenant_id, "tests", api_keys.SCOPES - {"admin"}, actor="tests")
    with serving(settings) as server, OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        yield client


@contextmanager
def worker(start: StartProcess, settings: Settings, model: str, **changes: object) -> Iterator[Process]:
    """A worker process that takes jobs, with leases that outlast a pause of a busy machine."""
    process = start(worker_command(model), worker_environment(settings, {"lease_s": 60, **changes}))
    try:
        process.wait_event("worker_ready")
        yield process
    finally:
        process.stop()


@pytest.mark.full
def test_the_official_client_gets_the_models_vectors(
    settings: Settings, db: Database, tmp_path: Path, start_process: StartProcess
) -> None:
    folder = build("bert", tmp_path / "bert")
    register(db, "org/vectors", str(folder), "float32", actor="tests")
    tokenizer = load_tokenizer(small_files(folder))
    ids = [tuple(tokenizer.encode(text, add_special=True)) for text in TEXTS]
    expected = reference(folder, ids)
    with calling(settings, db, api_keys.create_tenant(db, "acme")) as client:
        create = client.embeddings.create
        with worker(start_process, settings, "org/vectors", device="cpu"):
            found = create(model="org/vectors", input=TEXTS)  # the client requests base64 and decodes it
            plain = create(model="org/vectors@1", input=TEXTS, encoding_format="float")
            packed = create(model="org/vectors", input=TEXTS, encoding_format="base64")
            by_ids = create(model="org/vectors@default", input=[list(one) for one in ids], extra_body=OWN)
            alone = [
                create(model="org/vectors", input=one, extra_body=OWN).data[0].embedding
                for one in (*TEXTS, list(ids[2]))
            ]
            native = client.post(
                "/jobs",
                body={"task": "embed", "model": "org/vectors", "input": {"texts": TEXTS}},
                options={"headers": {"Prefer": "wait=60"}},
                cast_to=httpx2.Response,
            ).json()
            listed = client.get("/jobs?limit=1", cast_to=httpx2.Response).json()["data"]
            pairs = {"model": "org/vectors", "text_1": TEXTS[:2], "text_2": TEXTS[2:]}
            score = client.post("/score", body=pairs, cast_to=httpx2.Response).json()
    cosines = [sum(a * b for a, b in zip(expected[i], expected[i + 2], strict=True)) for i in range(2)]
    assert apart([[one["score"] for one in score["data"]]], [cosines]) < 10 * MOST_APART
    assert [one.index for one in found.data] == list(range(len(TEXTS)))
    assert apart([one.embedding for one in found.data], expected) < MOST_APART
    assert apart([*alone[:4], alone[4]], [*expected, expected[2]]) < MOST_APART
    assert by_ids.data == plain.data == found.data, "the batch is the same one"
    assert [struct.unpack("<64f", b64decode(str(one.embedding))) for one in packed.data] == vectors(found)
    assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, ids))
    assert (found.model, plain.model) == ("org/vectors@1", "org/vectors@1")
    assert (native["status"], native["output"]["dimensions"]) == ("succeeded", 64)
    assert native["output"]["embeddings"] == [one.embedding for one in packed.data]
    assert [job["output"] for job in listed] == [{"dimensions": 64}], "a list leaves the vectors out"
    assert native["usage"]["input_tokens"] == sum(map(len, ids))
    assert native["usage"]["output_tokens"] == 0


def vectors(answer: CreateEmbeddingResponse) -> list[tuple[float, ...]]:
    """The answer's vectors, rounded to float32."""
    return [tuple(one.embedding) for one in answer.data]


@pytest.mark.full
def test_a_caller_gets_its_vectors_although_the_worker_dies(
    settings: Settings, db: Database, start_process: StartProcess
) -> None:
    bench = Bench(db, settings, register(db, "vectors", "fake-encoder", "auto", actor="tests"))
    duties = Duties(bench)
    duties.start()
    texts = [f"{n} {'x' * 4000}" for n in range(70)]  # one pass each
    with ThreadPoolExecutor(1) as caller, calling(settings, db, bench.tenant_id) as client:
        with worker(start_process, settings, "vectors", fake_step_ms=200) as first:
            asked = caller.submit(client.embeddings.create, model="vectors", input=texts, dimensions=4)
            wait_for(lambda: bench.query("SELECT FROM jobs WHERE state = 'running'"), "the job runs")
            first.signal(signal.SIGKILL)
            first.wait_exit()
            bench.end_leases()
        with worker(start_process, settings, "vectors"):
            answer = asked.result(90)
    duties.stop()
    expected = [struct.unpack("<4f", fake_vector(list(text.encode()), 4)) for text in texts]
    assert vectors(answer) == expected
    (job,) = bench.query("SELECT state, attempt, crashes FROM jobs")
    assert tuple(job) == (JobState.SUCCEEDED, 2, 1)
    bench.close()
