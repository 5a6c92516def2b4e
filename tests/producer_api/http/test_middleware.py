"""The middleware by itself: counted requests, reading of bodies, and the headers of every answer."""

from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.producer_api.access.rate_limits import OverRate, note_headers
from headrace.producer_api.http.middleware import Authenticate, BufferBody, MeterWrites, OverLimitKeys, RequestContext
from headrace.store.errors import HeadraceError, InvalidRequest, NotFound, TooLarge
from headrace.store.metrics.api_metrics import ApiMetrics
from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import Principal
from headrace.store.tracing.tracing import OFF
from tests.cases import of
from tests.refusals import Naming
from tests.stand_ins import stand_in

PRINCIPAL = Principal("tenant", "key_1", frozenset())


async def ask(layer: Any, *parts: bytes, **fields: Any) -> list[Any]:
    """Send a request with a body of these parts through a layer; return the messages of its answer."""
    sent, left = [], list(parts)

    async def receive() -> Message:
        body = left.pop(0) if left else b""
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/jobs", "headers": [], "state": {}} | fields
    await layer(scope, receive, send)
    return sent


class Target:
    """An application that notes the bodies and headers that come to it, and answers with a status or an error."""

    def __init__(self, status: int = 200, error: Exception | None = None) -> None:
        self.status, self.error = status, error
        self.bodies: list[bytes] = []
        self.headers: list[Any] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers.append(scope["headers"])
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        if self.error is not None:
            raise self.error
        await send({"type": "http.response.start", "status": self.status, "headers": []})


def test_a_key_over_its_limit_is_refused_without_redis_for_a_second_at_most() -> None:
    now = 100.0
    keys = OverLimitKeys(clock=lambda: now)
    keys.note("a", OverRate("slowly", retry_after_s=7.5, headers={"x": "1"}))
    keys.note("b", OverRate("soon", retry_after_s=0.25, headers={}))
    keys.check("c")
    now = 100.24
    with pytest.raises(OverRate):
        keys.check("b")
    now = 100.25
    keys.check("b")
    now = 100.99
    with pytest.raises(OverRate) as caught:
        keys.check("a")
    assert (caught.value.message, caught.value.retry_after_s, caught.value.headers) == ("slowly", 7.5, {"x": "1"})
    now = 101.0
    keys.check("a")


def _meter(target: Target, refuses: bool = False) -> tuple[MeterWrites, list[str]]:
    counted: list[str] = []

    def spend(principal: Principal) -> None:
        counted.append(principal.key_id)
        if refuses:
            raise OverRate("slowly", retry_after_s=30.0, headers={})

    return MeterWrites(target, stand_in(rate_limits=stand_in(spend_request=spend))), counted


@pytest.mark.parametrize(
    ("method", "path", "status", "num_counted"),
    [
        ("GET", "/v1/jobs", 404, 0),
        ("POST", "/v1/jobs", 202, 0),
        ("POST", "/v1/jobs", 399, 0),
        ("POST", "/v1/jobs", 400, 1),
        ("POST", "/v1/chat/completions", 500, 1),
        ("POST", "/v1/prompts", 200, 1),
        ("POST", "/v1/prompts", 404, 1),
        ("PUT", "/v1/jobs", 405, 1),
        ("PATCH", "/v1/prompts/x", 200, 1),
        ("DELETE", "/v1/jobs/x", 200, 1),
    ],
)
async def test_a_write_is_counted_once(method: str, path: str, status: int, num_counted: int) -> None:
    """A submission that is accepted is counted with its batch, elsewhere."""
    meter, counted = _meter(Target(status))
    await ask(meter, method=method, path=path, state={"principal": PRINCIPAL})
    assert counted == ["key_1"] * num_counted
    await ask(meter, method=method, path=path)
    assert counted == ["key_1"] * num_counted, "a request without a key is not counted"


async def test_a_submission_that_fails_is_counted_unless_it_was_before() -> None:
    meter, counted = _meter(Target(error=InvalidRequest("wrong")))
    with pytest.raises(InvalidRequest):
        await ask(meter, state={"principal": PRINCIPAL})
    assert counted == ["key_1"]

    class Spent(Target):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            note_headers({"x-ratelimit-limit-requests": "9"})
            await super().__call__(scope, receive, send)

    runtime: Any = SimpleNamespace(metrics=ApiMetrics(), tracing=OFF, streams=SimpleNamespace(leave=lambda _: None))
    runtime.refusal_log = SimpleNamespace(note=lambda *_: None)
    meter, counted = _meter(Spent(400))
    (start,) = await ask(RequestContext(meter, runtime), state={"principal": PRINCIPAL})
    assert (counted, dict(start["headers"])[b"x-ratelimit-limit-requests"]) == ([], b"9")


async def test_a_key_that_was_refused_is_not_asked_about_again() -> None:
    meter, counted = _meter(target := Target(), refuses=True)
    for _ in range(3):
        with pytest.raises(OverRate):
            await ask(meter, path="/v1/prompts", state={"principal": PRINCIPAL})
    assert (counted, target.bodies) == (["key_1"], [])
    other = Principal("tenant", "key_2", frozenset())
    with pytest.raises(OverRate):
        await ask(meter, path="/v1/prompts", state={"principal": other})
    assert counted == ["key_1", "key_2"]
    # A submission that its own batch refused is known too.
    meter, counted = _meter(target := Target(error=OverRate("slowly", retry_after_s=30.0, headers={})))
    for _ in range(2):
        with pytest.raises(OverRate):
            await ask(meter, state={"principal": PRINCIPAL})
    assert (len(counted), len(target.bodies)) == (1, 1)


def _headers(**headers: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], None),
        (_headers(authorization="Bearer a"), "Bearer a"),
        (_headers(x_api_key="a"), "Bearer a"),
        (_headers(authorization="Bearer a", x_api_key="a"), "Bearer a"),
        (_headers(x_api_key="a") * 2, "Bearer a"),
        (
            _headers(authorization="Bearer a") * 2,
            ("Authorization header", "Authorization"),
        ),
        (
            _headers(authorization="Bearer a", x_api_key="b"),
            ("API key", "x-api-key"),
        ),
        (
            _headers(x_api_key="a") + _headers(x_api_key="b"),
            ("API key", "x-api-key"),
        ),
    ],
)
async def test_a_key_is_in_one_of_two_headers(given: list[Any], expected: Any) -> None:
    asked: list[str | None] = []

    async def principal(authorization: str | None) -> Principal:
        asked.append(authorization)
        return PRINCIPAL

    layer = Authenticate(Target(), stand_in(authenticator=stand_in(principal=principal)))
    state: dict[str, Any] = {}
    if isinstance(expected, tuple):
        with pytest.raises(InvalidRequest) as caught:
            await ask(layer, headers=given, state=state)
        assert (caught.value.message, caught.value.param) == (Naming(expected[0]), expected[1])
        return
    await ask(layer, headers=given, state=state)
    assert (asked, state) == ([expected], {"principal": PRINCIPAL})
    await ask(layer, headers=given, path="/v1x")
    assert len(asked) == 1, "only what is under /v1/ needs a key"


LIMITS = {"max_body_bytes": 1000, "max_embedding_body_bytes": 2000, "max_file_bytes": 5000, "max_audio_bytes": 3000}
FORM = 64 << 10


def _buffer(target: Target, **limits: int) -> tuple[BufferBody, FastAPI]:
    app = FastAPI()
    paths = "/v1/jobs", "/v1/embeddings", "/v1/files", "/v1/audio/transcriptions", "/v1/uploads/{id}/parts"
    app.router.routes[:] = [Route(path, lambda _: None, methods=["POST"]) for path in paths]
    settings = Settings(database_url="postgresql://x/y", redis_url="redis://x").model_copy(update=LIMITS | limits)
    return BufferBody(target, stand_in(settings=settings)), app


@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("/v1/jobs", 1000),
        ("/v1/embeddings", 2000),
        ("/v1/files", 5000 + FORM),
        *of("transcribe", ("/v1/audio/transcriptions", 3000 + FORM)),
        ("/v1/uploads/up_1/parts", 5000 + FORM),
    ],
)
async def test_a_body_may_be_as_long_as_the_limit_of_its_path(path: str, most: int) -> None:
    buffer, app = _buffer(target := Target())
    await ask(buffer, b" " * most, path=path, app=app, headers=_headers(content_length=str(most)))
    assert [len(body) for body in target.bodies] == [most]
    declared = await ask(buffer, path=path, app=app, headers=_headers(content_length=str(most + 1)))
    assert [message.get("status") for message in declared] == [413, None, None]
    assert [message.get("more_body") for message in declared] == [None, True, False]
    assert f"{most} bytes" in declared[1]["body"].decode()
    if most < FORM:
        found = await ask(buffer, b" " * most, b" ", path=path, app=app)
        assert found[0]["status"] == 413, "a body without a declared length is counted"
    assert len(target.bodies) == 1


async def test_a_part_of_an_upload_is_64_mib_at_most() -> None:
    most = (64 << 20) + FORM
    buffer, app = _buffer(target := Target(), max_file_bytes=1 << 30)
    for length, status in ((most, 200), (most + 1, 413)):
        given = _headers(content_length=str(length))
        found = await ask(buffer, path="/v1/uploads/up_1/parts", app=app, headers=given)
        assert found[0]["status"] == status
    assert len(target.bodies) == 1


@pytest.mark.parametrize(
    ("kind", "is_taken"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/merge-patch+json", True),
        ("text/json", False),
        ("text/x+json", False),
        ("application/x-ndjson", False),
    ],
)
async def test_a_body_is_json(kind: str, is_taken: bool) -> None:
    buffer, app = _buffer(target := Target())
    given = _headers(content_type=kind)
    await ask(buffer, app=app, headers=given)
    assert target.bodies == [b""], "a request without a body needs no type"
    if is_taken:
        await ask(buffer, b"{", b"}", app=app, headers=given)
        assert (target.bodies[1:], target.headers[1:]) == ([b"{}"], [given])
        return
    with pytest.raises(InvalidRequest, match="`Content-Type: application/json`"):
        await ask(buffer, b"{}", app=app, headers=given)


async def test_a_body_without_a_route_is_not_read() -> None:
    buffer, app = _buffer(target := Target())
    for fields in ({"path": "/v1/horses"}, {"method": "GET"}, {"method": "DELETE"}):
        await ask(
            buffer, b"x" * 3000, app=app, headers=_headers(content_encoding="br", content_length="3000"), **fields
        )
    assert [len(body) for body in target.bodies] == [3000] * 3


def _context(target: ASGIApp) -> tuple[RequestContext, Any, list[Any]]:
    left: list[Any] = []
    runtime: Any = SimpleNamespace(metrics=ApiMetrics(), tracing=OFF, streams=SimpleNamespace(leave=left.append))
    runtime.refusal_log = SimpleNamespace(note=lambda code, scope: left.append(code))
    return RequestContext(target, runtime), runtime, left


@pytest.mark.parametrize(
    ("given", "noted"),
    [("a b", "a b"), ("x" * 512, "x" * 512), ("x" * 513, None), ("", None), ("a\x01", None), ("\xe9", None)],
)
async def test_the_callers_own_id_is_in_the_log(given: str, noted: str | None) -> None:
    bound: list[dict[str, Any]] = []

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        bound.append(structlog.contextvars.get_contextvars())

    context, _, _ = _context(app)
    await ask(context, headers=[(b"x-client-request-id", given.encode("latin-1"))])
    assert [one.get("client_request_id") for one in bound] == [noted]
    assert bound[0]["request_id"].startswith("req_")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotFound("no"), 404, "not_found"),
        (TooLarge("no"), 413, "request_too_large"),
        (HeadraceError("no"), 500, "internal_error"),
        (ValueError("secret"), 500, "internal_error"),
    ],
)
async def test_an_error_is_an_answer_that_is_counted(error: Exception, status: int, code: str) -> None:
    context, runtime, left = _context(Target(error=error))
    start, body = await ask(context, path="/v1/x")
    headers = dict(start["headers"])
    assert (start["status"], b"secret" in body["body"]) == (status, False)
    assert headers[b"x-request-id"].startswith(b"req_")
    assert headers[b"cache-control"] == b"no-store"
    assert b"request-id" not in headers, "that one is Anthropic's"
    assert left[0] == code
    assert len(left) == 2, "its place among the streams is given back"
    read = runtime.metrics.registry.get_sample_value
    assert read("headrace_requests_refused_total", {"code": code}) == 1
    labels = {"method": "POST", "route": "unmatched", "status": str(status)}
    assert read("headrace_request_seconds_count", labels) == 1


@pytest.mark.uses("anthropic")
async def test_anthropic_s_routes_name_the_request_as_its_clients_read_it() -> None:
    context, _, _ = _context(Target())
    (start,) = await ask(context, path="/v1/messages")
    headers = dict(start["headers"])
    assert headers[b"request-id"] == headers[b"x-request-id"]
    assert headers[b"content-security-policy"] == b"default-src 'none'; frame-ancestors 'none'"
    assert (headers[b"x-content-type-options"], headers[b"cache-control"]) == (b"nosniff", b"no-store")
    assert headers[b"openai-processing-ms"].isdigit()
