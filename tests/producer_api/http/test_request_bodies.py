"""Bodies and paths as clients spell them: gzip, JSON without its type, a slash too many, pages of other origins."""

import gzip
import json

import httpx2
import pytest

from headrace.store.db.database import Database
from headrace.store.settings import Settings
from tests.producer_api.calling import PROMPT, error_of, num_jobs
from tests.producer_api.serving import serving

GZIP = {"Content-Encoding": "gzip"}
BODY = json.dumps(PROMPT).encode()
PAGE = "https://chat.example.com"


def test_a_gzip_body_is_the_same_request(api: httpx2.Client) -> None:
    key = {"Idempotency-Key": "k"}
    plain = api.post("/v1/jobs", content=BODY, headers=key)
    packed = api.post("/v1/jobs", content=gzip.compress(BODY), headers=key | GZIP)
    assert packed.headers["idempotent-replayed"] == "true"
    assert plain.json()["id"] == packed.json()["id"]


def test_a_gzip_body_is_bounded_and_whole(api: httpx2.Client, db: Database, subtests: pytest.Subtests) -> None:
    packed = gzip.compress(BODY)
    for name, content, status in (
        ("over the limit", gzip.compress(BODY + b" " * (2 << 20), 1), 413),
        ("mostly repetition", gzip.compress(BODY + b" " * 900_000, 9), 413),
        ("cut", packed[:-4], 400),
        ("followed by more", packed + packed, 400),
        ("something else", BODY, 400),
        ("nothing", b"", 400),
    ):
        with subtests.test(name):
            refused = api.post("/v1/jobs", content=content, headers=GZIP)
            assert refused.status_code == status, refused.text
            error_of(refused)
    assert error_of(api.post("/v1/files", content=packed, headers=GZIP))["code"] == "unsupported_encoding"
    assert num_jobs(db) == 0


def test_a_body_without_a_type_is_json(api: httpx2.Client) -> None:
    for path in ("/v1/jobs", "/v1/jobs/"):
        request = api.build_request("POST", path, content=BODY)
        request.headers.pop("content-type", None)
        assert api.send(request).status_code == 202


def test_a_project_has_a_longest_name(api: httpx2.Client, db: Database) -> None:
    assert api.post("/v1/jobs", content=BODY, headers={"OpenAI-Project": "p" * 255}).status_code == 202
    refused = api.post("/v1/jobs", content=BODY, headers={"OpenAI-Project": "p" * 256})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "OpenAI-Project")
    assert num_jobs(db) == 1


def test_other_spellings_of_a_path_are_the_same_route(api: httpx2.Client) -> None:
    models = api.get("/v1/models").json()
    assert [api.get(path).json() for path in ("/v1/models/", "/models", "/models/")] == [models] * 3
    assert api.get("/models/tiny@1").json() == api.get("/v1/models/tiny@1").json()
    assert api.get("/models", headers={"Authorization": ""}).status_code == 401


def test_an_unknown_route_is_not_found_whatever_is_sent(api: httpx2.Client) -> None:
    for content, headers in ((b"x" * (4 << 20), {}), (b"x", {"Content-Type": "text/plain"}), (b"{", GZIP)):
        assert error_of(api.post("/v1/horses", content=content, headers=headers))["code"] == "not_found"


def test_an_unknown_route_says_where_to_go(api: httpx2.Client) -> None:
    told = error_of(api.get("/v1/horses"))["message"]
    assert "/docs" in told
    assert api.get("/docs").status_code == 200
    others = {
        "POST /api/chat": "Ollama",
        "GET /api/tags": "Ollama",
        "GET /v2/health/ready": "KServe",
        "POST /v2/models/tiny/infer": "KServe",
        "POST /v1/models/tiny:predict": "KServe",
        "POST /v2/chat": "Cohere",
    }
    for asked, name in others.items():
        refused = api.request(*asked.split())
        assert refused.status_code in (404, 405), asked
        assert name in error_of(refused)["message"], asked


def test_pages_of_named_origins_may_call(settings: Settings, model: object, key: str) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    with serving(settings.model_copy(update={"cors_origins": (PAGE,)})) as server:
        allowed = httpx2.options(f"{server.url}/v1/jobs", headers={"Origin": PAGE} | asks)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, PAGE)
        assert "x-stainless-os" in allowed.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in allowed.headers
        assert allowed.headers["access-control-allow-methods"] == "GET, POST, PUT, PATCH, DELETE"
        refused = httpx2.get(f"{server.url}/v1/models", headers={"Origin": PAGE}, timeout=60)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
        assert refused.headers["access-control-expose-headers"] == (
            "X-Request-Id, X-Job-Id, X-Model-Version, Location, Retry-After, Headrace-Warning, Headrace-Truncated, "
            "X-Cache"
        )
        for other in ("https://chat.example.com.evil.org", "http://chat.example.com", "null"):
            answer = httpx2.options(f"{server.url}/v1/jobs", headers={"Origin": other} | asks)
            assert answer.status_code == 400
            assert "access-control-allow-origin" not in answer.headers


def test_without_the_setting_no_page_may_call(api: httpx2.Client) -> None:
    answer = api.get("/v1/models", headers={"Origin": PAGE})
    assert "access-control-allow-origin" not in answer.headers
