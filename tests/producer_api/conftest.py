"""A server, keys for two tenants, a fake model and a worker controlled by the test."""

from collections.abc import Callable, Iterator

import httpx2
import pytest
import redis
from openai import DefaultHttpxClient, OpenAI

from headrace.producer_api.access import rate_limits
from headrace.store.db.database import Database
from headrace.store.registry.models import ModelVersion, register_version
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import NO_TLS, ApiServer, serving

CONTEXT_WINDOW = 512

MakeClient = Callable[[str | None], httpx2.Client]


@pytest.fixture(autouse=True)
def no_headers_of_another_test() -> Iterator[None]:
    """Forget the headers that a test has noted outside a request: they stay in the context of this thread."""
    yield
    rate_limits.begin_headers()


@pytest.fixture
def model(db: Database) -> ModelVersion:
    return register_version(
        db,
        model="tiny",
        runner="fake",
        source="fake:tiny",
        digest="0" * 64,
        dtype="float32",
        context_window=CONTEXT_WINDOW,
        files={},
        actor="tests",
    )


@pytest.fixture
def encoder(db: Database) -> ModelVersion:
    return register_version(
        db,
        model="org/vectors",
        runner="fake-encoder",
        source="fake-encoder",
        digest="e" * 64,
        dtype="float32",
        context_window=8192,
        files={},
        actor="tests",
    )


@pytest.fixture
def no_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams wake up only on published frames. Use with ``usefixtures``, before the server starts."""
    monkeypatch.setattr("headrace.store.streams.hub.TICK_S", 3600.0)


@pytest.fixture
def tenant(db: Database) -> str:
    return api_keys.create_tenant(db, "acme")


@pytest.fixture
def key(db: Database, tenant: str) -> str:
    return api_keys.create_key(db, tenant, "all", api_keys.SCOPES - {"admin"}, actor="tests")


@pytest.fixture
def other_key(db: Database) -> str:
    return api_keys.create_key(db, api_keys.create_tenant(db, "globex"), "all", api_keys.SCOPES, actor="tests")


@pytest.fixture
def server(settings: Settings, model: ModelVersion) -> Iterator[ApiServer]:
    with serving(settings) as server:
        yield server


@pytest.fixture
def make_client(server: ApiServer) -> Iterator[MakeClient]:
    clients: list[httpx2.Client] = []

    def make(key: str | None) -> httpx2.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        client = httpx2.Client(base_url=server.url, headers=headers, timeout=60, verify=NO_TLS)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def api(make_client: MakeClient, key: str) -> httpx2.Client:
    return make_client(key)


@pytest.fixture
def openai(server: ApiServer, key: str) -> Iterator[OpenAI]:
    http_client = DefaultHttpxClient(verify=NO_TLS)
    with OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60, http_client=http_client) as client:
        yield client


@pytest.fixture
def worker(db: Database, redis_client: redis.Redis) -> ScriptedWorker:
    return ScriptedWorker(db, redis_client, "tiny@1")
