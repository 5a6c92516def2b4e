"""No request, however broken, is answered with a failure of the server's, or keeps it from answering the next one."""

import json
import socket
from urllib.parse import urlsplit

import httpx2
import pytest

from headrace.store.db.database import Database
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from headrace.store.tenants.tenant_limits import Limits, SetBy, set_limits
from tests.producer_api.malformed import Case, Generator
from tests.producer_api.serving import ApiServer, serving

SEED = 20_251_125
FEW, ALL = 500, 10_000
NEVER = 599

# What a request gets that happens to be good: the job that it made has not ended in time.
_WAITED = {"sync_timeout"}


def answer(server: ApiServer, case: Case) -> bytes:
    """Send the case; return what came back, or nothing if the server hung up."""
    address = urlsplit(server.url)
    with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=60) as connection:
        try:
            connection.sendall(case.data)
            if not case.must_answer:
                connection.shutdown(socket.SHUT_WR)  # it may promise more than it has
            return _read(connection, to_the_end=not case.data.startswith(b"HEAD"))
        except TimeoutError:
            return b"HTTP/1.1 %d never\r\n\r\n" % NEVER
        except OSError:
            return b""


def _read(connection: socket.socket, *, to_the_end: bool) -> bytes:
    """Read the head and, of an answer in JSON, the body; a stream would last for ever."""
    found = b""
    while chunk := connection.recv(65_536):
        found += chunk
        head, separator, body = found.partition(b"\r\n\r\n")
        if not separator:
            continue
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if not to_the_end or len(body) >= int(headers.get(b"content-length", b"0")):
            break
    return found


def complaint(case: Case, found: bytes) -> str | None:
    """Return the violations in the answer."""
    if not found:
        return "no answer" if case.must_answer else None
    head, _, body = found.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if status == NEVER:
        return "no answer in time"
    is_json = b"content-type: application/json" in head.lower()
    if status < 400 or case.data.startswith(b"HEAD"):
        return None if status < 500 else f"{status}"
    if not is_json:
        # The server's own answer to data that is not HTTP.
        return None if status == 400 and not case.must_answer else f"{status} without the error's shape: {body[:80]!r}"
    error = json.loads(body)["error"]
    if not ({"message", "type", "param", "code"} <= set(error) and error["message"] and error["code"]):
        return f"not the error's shape: {error}"
    return f"{status} {error['code']}" if status >= 500 and error["code"] not in _WAITED else None


def test_no_malformed_request_is_a_failure_of_the_server(
    settings: Settings, model: ModelVersion, db: Database, tenant: str, request: pytest.FixtureRequest
) -> None:
    changes = {
        "requests_per_minute": 10**9,
        "tokens_per_minute": 10**9,
        "sync_timeout_s": 0.01,
        "max_wait_s": 0.01,
        "keep_batches": "off",
    }
    count = ALL if request.config.getoption("--full") else FEW
    key = api_keys.create_key(db, tenant, "all", api_keys.SCOPES, actor="tests")
    with serving(settings.model_copy(update=changes)) as server:
        found = []
        for case in Generator(server.app.openapi(), key, SEED).cases(count):
            found.append((case, complaint(case, answer(server, case))))
            if case.data.startswith(b"PUT /v1/organization/limits"):
                # It may have been good, and would let in none of those that follow.
                set_limits(db, tenant, None, Limits(), set_by=SetBy.TENANT, actor="tests")
                server.runtime.limits.forget()
        broken = [f"{case.name}: {said}\n    {case.data[:400]!r}" for case, said in found if said is not None]
        assert not broken, "\n".join([f"{len(broken)} of {count}", *broken[:20]])
        assert httpx2.get(f"{server.url}/healthz", timeout=60).status_code == 200
        assert len(found) == count
