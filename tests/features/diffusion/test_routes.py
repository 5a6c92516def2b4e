"""OpenAI's images API on the version without weights: what is refused before a job is stored, the forms of answers."""

import base64
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx2
import pytest
from PIL import Image

from headrace.models.catalog import register
from headrace.store.jobs import jobs
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.producer_api.serving import serving
from tests.workers.conftest import Bench, Duties, StartWorker

URL = "/v1/images/generations"
EDITS = "/v1/images/edits"


@pytest.fixture
def api(bench: Bench, settings: Settings) -> Iterator[httpx2.Client]:
    register_fake(bench)
    key = api_keys.create_key(bench.db, bench.tenant_id, "all", api_keys.SCOPES - {"admin"}, actor="tests")
    with serving(settings) as server:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=server.url, headers=headers, timeout=60) as client:
            yield client


def register_fake(bench: Bench) -> None:
    register(bench.db, "painter", "fake-image-pipeline", "auto", actor="tests")


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    out = BytesIO()
    Image.new(mode, (width, height), 7 if mode == "L" else (7,) * len(mode)).save(out, "PNG")
    return out.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A file of some bytes that says it has very many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"size": "100x100"}, "size", "multiples of 8"),
    ({"size": "10000x10000"}, "size", "4194304"),
    ({"size": "large"}, "size", ""),
    ({"steps": 10_000}, "steps", "200"),
    ({"steps": 0}, "steps", ""),
    ({"n": 11}, "n", "10"),
    ({"seed": -1}, "seed", ""),
    ({"guidance": 1000}, "guidance", ""),
    ({"prompt": ""}, "prompt", ""),
    ({"prompt": "x" * 40_000}, "prompt", "32000"),
    ({"output_format": "gif"}, "output_format", "png, jpeg or webp"),
    ({"output_format": "webp", "output_compression": 101}, "output_compression", ""),
    ({"background": "transparent"}, "background", "opaque"),
    ({"quality": "high"}, "quality", "steps"),
    ({"style": "vivid"}, "style", "prompt"),
    ({"partial_images": 2}, "partial_images", "stream"),
    ({"partial_images": 4, "stream": True}, "partial_images", "3"),
    ({"stream": True, "response_format": "url"}, "stream", ""),
    ({"steeps": 3}, "steeps", ""),
]


def test_an_order_that_cannot_be_made_is_refused_by_the_name_of_its_field(api: httpx2.Client, bench: Bench) -> None:
    for change, param, words in REFUSED:
        answer = api.post(URL, json={"model": "painter", "prompt": "a mill", **change})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), (change, error)
        assert words in error["message"], error
    native = {"task": "image_generate", "model": "painter", "input": {"prompt": "a mill", "size": "100x100"}}
    assert api.post("/v1/jobs", json=native).json()["error"]["param"] == "input.size"
    assert jobs.list_jobs(bench.db, bench.tenant_id) == []


def test_a_picture_that_cannot_be_changed_is_refused_and_not_kept(api: httpx2.Client, bench: Bench) -> None:
    good = png(64, 64)

    def refused(image: bytes | None = good, mask: bytes | None = None, **fields: str) -> tuple[int, str, str]:
        files = {"image": image, "mask": mask}
        given = {name: (f"{name}.png", content, "image/png") for name, content in files.items() if content is not None}
        data = {"model": "painter", "prompt": "snow", **fields}
        answer = api.post(EDITS, data=data, files=given or {"other": ("a", b"b", "text/plain")})
        error = answer.json()["error"]
        return answer.status_code, error["param"], error["message"]

    assert refused(None)[0] == 400
    assert refused(b"no picture")[:2] == (400, "image")
    assert refused(good[:20])[:2] == (400, "image")
    status, param, message = refused(huge_png(100_000, 100_000))
    assert (status, param, "25000000" in message) == (400, "image", True)
    status, param, message = refused(mask=png(64, 32))
    assert (status, param, "equal" in message) == (400, "mask", True)
    assert refused(strength="2")[:2] == (400, "strength")
    assert refused(size="100x100")[:2] == (400, "size")
    assert refused(model="nothing")[0] == 404
    assert refused(input_fidelity="high")[:2] == (400, "input_fidelity")
    body = {"model": "painter", "prompt": "snow", "images": [{"image_url": "https://example.com/a.png"}]}
    assert api.post(EDITS, json=body).json()["error"]["param"] == "image"
    assert api.get("/v1/files").json()["data"] == []
    assert jobs.list_jobs(bench.db, bench.tenant_id) == []


def test_a_deadline_that_the_steps_alone_exceed_is_refused_once_their_time_is_known(
    api: httpx2.Client, bench: Bench, start_worker: StartWorker
) -> None:
    start_worker(model="painter", fake_step_ms=50)

    def asked(deadline_ms: int, steps: int) -> httpx2.Response:
        shape = {"prompt": "a mill", "size": "256x256", "steps": steps}
        body = {"task": "image_generate", "model": "painter", "input": shape, "deadline_ms": deadline_ms}
        return api.post("/v1/jobs", json=body)

    first = asked(500, 40)
    assert first.status_code == 202, "nothing is known yet"
    assert api.get(f"/v1/jobs/{first.json()['id']}?wait=60").json()["status"] == "expired"
    assert api.get(f"/v1/jobs/{asked(60_000, 40).json()['id']}?wait=60").json()["status"] == "succeeded"
    refused = asked(1_000, 40)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "deadline_unreachable", "deadline_ms")
    assert "give it more time" in error["message"]
    assert [asked(*order).status_code for order in ((60_000, 40), (1_500, 10))] == [202, 202]


def test_a_policy_refuses_a_prompt(api: httpx2.Client, bench: Bench) -> None:
    rule = {"id": "ours", "deny": {"phrases": ["Project Titan"]}, "action": "block", "stage": "input"}
    assert api.put("/v1/policies", json={"document": {"version": 1, "rules": [rule]}}).status_code == 200
    for changes in ({"prompt": "project titan"}, {"prompt": "a mill", "negative_prompt": "Project Titan"}):
        refused = api.post(URL, json={"model": "painter", **changes}).json()["error"]
        assert refused["code"] == "policy_blocked_input", changes
        assert "ours" in refused["message"]
    assert jobs.list_jobs(bench.db, bench.tenant_id) == []


def test_a_step_looks_at_the_picture_that_another_has_made(
    api: httpx2.Client, bench: Bench, start_worker: StartWorker
) -> None:
    register(bench.db, "looker", "fake-image-classifier", "auto", actor="tests")
    image = {"file_id": {"$from": "paint.output.files.0.id"}}
    steps = [
        {"name": "paint", "task": "image_generate", "model": "painter", "input": {"prompt": "a mill", "seed": 1}},
        {"name": "look", "task": "image_classify", "model": "looker", "needs": ["paint"], "input": {"images": [image]}},
    ]
    accepted = api.post("/v1/jobs", json={"input": {}, "steps": steps})
    assert accepted.status_code == 202, accepted.text
    start_worker(model="painter", fake_step_ms=1)
    start_worker(model="looker", fake_step_ms=1)
    ended = api.get(f"/v1/jobs/{accepted.json()['id']}?wait=60").json()
    assert ended["status"] == "succeeded", ended
    assert ended["output"]["classifications"][0][0]["score"] > 0


def test_answers_have_bytes_or_links_and_a_damaged_picture_fails_its_job_alone(
    api: httpx2.Client, bench: Bench, duties: Duties, start_worker: StartWorker
) -> None:
    worker = start_worker(model="painter", fake_step_ms=1)
    order = {"model": "painter", "prompt": "a mill", "n": 2, "seed": 1, "output_format": "jpeg"}
    made = api.post(URL, json=order).json()
    sizes = [Image.open(BytesIO(base64.b64decode(one["b64_json"]))).size for one in made["data"]]
    assert (sizes, made["output_format"], made["size"]) == ([(64, 64)] * 2, "jpeg", "64x64")
    assert made["usage"]["total_tokens"] == 1, "8 steps on 64 x 64 pixels"
    linked = api.post(URL, json=order | {"response_format": "url"}).json()["data"]
    with httpx2.Client() as anyone:
        found = [anyone.get(one["url"]).content for one in linked]
    assert found == [base64.b64decode(one["b64_json"]) for one in made["data"]]
    image = {"image": ("mill.png", png(128, 64), "image/png")}
    headers = {"Idempotency-Key": "an edit"}
    data = {"model": "painter", "prompt": "snow", "seed": "1"}
    first, second = (api.post(EDITS, data=data, files=image, headers=headers) for _ in range(2))
    assert first.headers["x-job-id"] == second.headers["x-job-id"]
    assert first.json()["size"] == "88x40", "not larger than the model's own by area"
    uploads = [one for one in api.get("/v1/files").json()["data"] if one["purpose"] == "vision"]
    assert len(uploads) == 1
    noise = BytesIO()
    Image.effect_noise((64, 64), 50).save(noise, "PNG")
    cut = noise.getvalue()[:2000]
    failed = api.post(EDITS, data=data, files={"image": ("cut.png", cut, "image/png")}).json()["error"]
    assert "damaged or cut off" in failed["message"]
    line = {"custom_id": "1", "method": "POST", "url": URL, "body": order | {"response_format": "url"}}
    sent = api.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": ("b", httpx2.Response(200, json=line).content)}
    )
    batch = {"input_file_id": sent.json()["id"], "endpoint": URL, "completion_window": "24h"}
    assert api.post("/v1/batches", json=batch).status_code == 200
    assert worker.exit_code is None
