"""Versions and aliases over HTTP: changes with conditions, and who may make them."""

import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.registry import models
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.registry.models import ModelVersion, get_version, register_version
from headrace.store.registry.quality_report import QualityBound, QualityReport
from headrace.store.registry.verification import Verification
from headrace.store.registry.verification_report import VerificationReport
from headrace.store.schema.version_states import VersionState
from headrace.store.tenants import api_keys
from tests.processes import wait_for
from tests.producer_api.calling import error_of, submit
from tests.producer_api.conftest import MakeClient
from tests.refusals import Naming


@pytest.fixture
def second(db: Database, model: ModelVersion) -> ModelVersion:
    return register_version(
        db,
        model=model.model,
        runner="fake",
        source="fake:tiny",
        digest="2" * 64,
        dtype="float32",
        context_window=512,
        files={},
        actor="tests",
    )


@pytest.mark.usefixtures("second")
def test_the_versions_of_a_model_are_listed(api: httpx2.Client) -> None:
    assert [one["id"] for one in api.get("/v1/models/tiny/versions").json()["data"]] == ["tiny@2", "tiny@1"]
    assert error_of(api.get("/v1/models/none/versions"))["code"] == "model_not_found"


def versions_of(api: httpx2.Client) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in api.get("/v1/model_versions", params={"model": "tiny"}).json()["data"]}


@pytest.mark.usefixtures("second")
def test_a_second_version_becomes_the_default_and_the_first_one_retires(
    api: httpx2.Client, db: Database, tenant: str
) -> None:
    before = submit(api)
    assert error_of(api.post("/v1/model_versions/tiny@1/retire"))["code"] == "version_in_use"
    moved = api.put("/v1/models/tiny/aliases/default", json={"version": 2}, headers={"If-Match": '"1"'})
    assert (moved.status_code, moved.headers["etag"]) == (200, '"2"')
    assert moved.json() == {
        "object": "model.alias",
        "id": "tiny@default",
        "model": "tiny",
        "alias": "default",
        "version": 2,
    }
    retired = api.post("/v1/model_versions/tiny@1/retire")
    assert (retired.json()["state"], retired.json()["queued"]) == ("retired", 1)
    wait_for(lambda: api.get(f"/v1/jobs/{submit(api)}").json()["model_version"] == 2, "new jobs follow the alias")
    assert api.get(f"/v1/jobs/{before}").json()["model_version"] == 1, "accepted jobs keep their version"
    assert [(one["state"], one["aliases"]) for one in versions_of(api).values()] == [
        ("ready", ["default"]),
        ("retired", []),
    ]
    assert api.post("/v1/model_versions/tiny@1/revive").json()["state"] == "ready"
    made = [(entry.action, entry.resource) for entry in list_entries(db, tenant, limit=3)]
    assert sorted(made) == [
        ("model.alias_set", "tiny@default"),
        ("model.retired", "tiny@1"),
        ("model.revived", "tiny@1"),
    ]


def register_chat(db: Database) -> ModelVersion:
    """A version that has to be verified, and whose requests need no files."""
    url = "http://127.0.0.1:9"
    return register_version(
        db,
        model="chat",
        runner="openai",
        source=url,
        digest="c" * 64,
        dtype="auto",
        context_window=512,
        files={},
        actor="tests",
        engine=EngineSpec(kind=EngineKind.OPENAI, url=url, served_model="upstream"),
    )


def test_a_version_is_used_as_its_verification_allows(api: httpx2.Client, db: Database) -> None:
    register_chat(db)
    once = {"Idempotency-Key": "once"}
    body = {"model": "chat", "input": {"messages": [{"role": "user", "content": "hi"}]}}
    accepted = api.post("/v1/jobs", json=body, headers=once)
    assert accepted.headers["headrace-warning"] == Naming("verified", "chat@1")
    alias = "/v1/models/chat/aliases/stable"
    refused = api.put(alias, json={"version": 1})
    assert (refused.status_code, error_of(refused)["code"]) == (409, "version_not_ready")

    verification = Verification(db, "chat", 1, worker="w1", lease_s=60)
    verification.claim()
    assert verification.reject("a wrong answer", VerificationReport(worker="w1"))
    wait_for(lambda: api.post("/v1/jobs", json=body).status_code == 409, "submissions are refused")
    refused = api.post("/v1/jobs", json=body)
    assert error_of(refused)["code"] == "model_rejected"
    assert "a wrong answer" in error_of(refused)["message"]
    assert api.post("/v1/jobs", json=body, headers=once).json()["id"] == accepted.json()["id"]
    refused = api.put(alias, json={"version": 1})
    assert error_of(refused)["code"] == "version_not_ready"
    assert "a wrong answer" in error_of(refused)["message"]
    (shown,) = api.get("/v1/model_versions", params={"model": "chat"}).json()["data"]
    assert (shown["state"], shown["state_reason"], shown["verification"]["worker"]) == (
        "rejected",
        "a wrong answer",
        "w1",
    )

    register_chat(db)
    verification.accept_server("openai 1.0")
    assert api.put(alias, json={"version": 1}).status_code == 200
    wait_for(
        lambda: "no worker serves" in api.post("/v1/jobs", json=body).headers.get("headrace-warning", ""), "it is ready"
    )


def test_versions_are_registered_without_folders(api: httpx2.Client, db: Database) -> None:
    files = {"tokenizer.json": b"{}", "config.json": b'{"model_type": "gpt2"}'}
    first = register_version(
        db,
        model="real",
        runner="torch",
        source="/models/real",
        digest="7" * 64,
        dtype="auto",
        context_window=512,
        files=files,
        actor="tests",
    )

    def post(model: str, body: dict[str, Any]) -> httpx2.Response:
        return api.post(f"/v1/models/{model}/versions", json=body)

    other = post("real", {"files_of": "real@1", "dtype": "float32", "golden": [{"prompt": "a", "tokens": [1]}]})
    assert other.status_code == 201
    shown = other.json()
    assert (shown["id"], shown["state"], shown["dtype"], shown["digest"], shown["quantized_from"]) == (
        "real@2",
        "registered",
        "float32",
        first.digest,
        "real@1",
    )
    assert post("real", {"files_of": "real@1", "dtype": "float32"}).json()["id"] == "real@2"
    server = {"kind": "vllm", "url": "http://127.0.0.1:9"}
    served = post("real", {"files_of": "real@1", "engine": server}).json()
    assert (served["id"], served["engine"], served["context_window"]) == ("real@3", "vllm", 512)
    stored = get_version(db, "real", 3)
    assert (stored.files, stored.engine.served_model, stored.state) == (first.files, "real", VersionState.REGISTERED)
    chat = {"kind": "openai", "url": "http://127.0.0.1:9", "context_window": 64}
    assert post("org/chat", {"engine": chat}).json()["id"] == "org/chat@1"
    bad: list[tuple[int, dict[str, Any]]] = [
        (400, {}),
        (400, {"files_of": "real"}),
        (400, {"files_of": "real@1", "dtype": "int8"}),
        (400, {"files_of": "real@1", "engine": server, "dtype": "float32"}),
        (400, {"engine": server}),
        (400, {"engine": server | {"url": "ftp://x"}}),
        (400, {"engine": {"kind": "openai", "url": "http://127.0.0.1:9"}}),
        (404, {"files_of": "real@99"}),
        (409, {"files_of": "tiny@1"}),
    ]
    assert [post("real", body).status_code for _, body in bad] == [status for status, _ in bad]


def test_a_server_has_no_name_of_an_address_at_which_none_can_be(
    api: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = {"gpu.internal": ["10.0.0.9", "fe80::1%2"], "metadata.internal": ["10.0.0.9", "169.254.169.254"]}
    look_up = socket.getaddrinfo

    def found(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if not str(host).endswith(".internal"):
            return look_up(host, port, *args, **options)
        if host not in addresses:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses[host]]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    told = {}
    for host in (*addresses, "of-the-workers.internal"):
        engine = {"kind": "openai", "url": f"http://{host}:8000", "context_window": 64}
        told[host] = api.post("/v1/models/org/chat/versions", json={"engine": engine})
    assert [answer.status_code for answer in told.values()] == [201, 400, 201]
    assert error_of(told["metadata.internal"])["param"] == "url"


def test_a_server_may_be_at_a_private_address_but_not_at_one_of_metadata(api: httpx2.Client) -> None:
    def post(host: str) -> httpx2.Response:
        engine = {"kind": "openai", "url": f"http://{host}:8000", "context_window": 64}
        return api.post("/v1/models/org/chat/versions", json={"engine": engine})

    metadata = ("169.254.169.254", "2852039166", "169.254.1.1", "100.100.100.200", "[fd00:ec2::254]", "[fe80::1]")
    for host in metadata:
        refused = post(host)
        assert (refused.status_code, error_of(refused)["param"]) == (400, "url"), host
    assert api.get("/v1/model_versions", params={"model": "org/chat"}).json()["data"] == []
    for host in ("10.0.0.1", "100.100.100.201", "[fd00::1]", "[::1]"):
        assert post(host).status_code == 201, host


def register_real(db: Database, runner: str, model_type: str) -> ModelVersion:
    return register_version(
        db,
        model=f"{runner}-{model_type}",
        runner=runner,
        source="/models/real",
        digest="7" * 64,
        dtype="auto",
        context_window=512,
        files={"config.json": f'{{"model_type": "{model_type}"}}'.encode()},
        actor="tests",
    )


@pytest.mark.parametrize(
    ("runner", "model_type", "answer"),
    [
        ("torch", "qwen3", "torch-qwen3@2"),
        ("torch", "gpt2", Naming("llama, mistral, qwen2, qwen3", "gpt2", "bfloat16")),
        ("encoder", "bert", Naming("float32 or bfloat16")),
    ],
)
def test_int8_is_for_models_that_run_in_it(
    api: httpx2.Client, db: Database, runner: str, model_type: str, answer: object
) -> None:
    first = register_real(db, runner, model_type)
    body = {"files_of": f"{first.model}@1", "dtype": "int8"}
    made = api.post(f"/v1/models/{first.model}/versions", json=body)
    found = made.json()["id"] if made.is_success else error_of(made)["message"]
    assert found == answer


def test_a_quantized_version_has_the_sampling_defaults_of_its_source_until_it_has_its_own(
    api: httpx2.Client, db: Database
) -> None:
    first = register_real(db, "torch", "qwen3")
    models.set_sampling(db, first.model, 1, SamplingDefaults(temperature=0.2), "tests")
    api.post(f"/v1/models/{first.model}/versions", json={"files_of": f"{first.model}@1", "dtype": "int8"})
    assert models.get_version(db, first.model, 2).sampling.temperature == 0.2
    assert models.resolve(db, f"{first.model}@2").sampling.temperature == 0.2
    models.set_sampling(db, first.model, 2, SamplingDefaults(temperature=0.5), "tests")
    assert [models.get_version(db, first.model, n).sampling.temperature for n in (1, 2)] == [0.2, 0.5]


REPORT = {
    "against": "tiny@1",
    "num_tokens": 5000,
    "kl": 0.002,
    "agreement": 0.97,
    "perplexity": 15.9,
    "reference_perplexity": 15.8,
    "took_s": 60.0,
}


def test_a_bound_is_set_shown_and_removed(api: httpx2.Client, tenant: str, db: Database, model: ModelVersion) -> None:
    url = f"/v1/models/{model.model}/quality_bound"
    nothing = {"object": "model.quality_bound", "model": "tiny", **dict.fromkeys(QualityBound.model_fields)}
    assert api.get(url).json() == nothing
    limits = {"min_agreement": 0.97, "max_kl": 0.02}
    assert api.put(url, json=limits).json() == nothing | limits
    assert api.get(url).json() == nothing | limits
    bad: list[dict[str, Any]] = [{}, {"max_kl": -1}, {"min_agreement": 1.1}, {"max_kl": "x"}, {"more": 1}]
    assert [api.put(url, json=body).status_code for body in bad] == [400] * len(bad)
    assert api.delete(url).status_code == 204
    assert api.get(url).json() == nothing
    assert error_of(api.put("/v1/models/none/quality_bound", json=limits))["code"] == "model_not_found"
    (removed, made) = list_entries(db, tenant, limit=2)
    assert (removed.action, removed.detail) == ("model.quality_bound_set", {})
    assert (made.action, made.detail) == ("model.quality_bound_set", {"min_agreement": "0.97", "max_kl": "0.02"})


def test_reports_are_shown(api: httpx2.Client, db: Database) -> None:
    register_chat(db)
    verification = Verification(db, "chat", 1, worker="w1", lease_s=60)
    verification.claim()
    assert verification.accept(VerificationReport(worker="w1", quality=QualityReport.model_validate(REPORT)))
    (shown,) = api.get("/v1/models/chat/versions").json()["data"]
    assert shown["verification"]["quality"]["agreement"] == 0.97


@pytest.mark.usefixtures("second")
def test_conditions_are_held(api: httpx2.Client) -> None:
    url = "/v1/models/tiny/aliases/stable"
    assert api.put(url, json={"version": 1}, headers={"If-None-Match": "*"}).status_code == 200
    for headers in ({"If-None-Match": "*"}, {"If-Match": '"2"'}):
        refused = api.put(url, json={"version": 2}, headers=headers)
        assert (refused.status_code, error_of(refused)["code"]) == (412, "alias_changed")
    assert api.delete(url, headers={"If-Match": '"2"'}).status_code == 412
    assert api.delete(url, headers={"If-Match": '"1"'}).status_code == 204
    assert error_of(api.delete(url))["code"] == "alias_not_found"


@pytest.mark.usefixtures("second")
def test_one_of_two_that_create_an_alias_at_once_is_told_so(
    api: httpx2.Client, db: Database, model: ModelVersion
) -> None:
    url = f"/v1/models/{model.model}/aliases/stable"
    with ThreadPoolExecutor() as pool, db.begin() as connection:
        # Both callers read that there is no alias, and wait for this transaction to insert theirs.
        insert = "INSERT INTO aliases (model, alias, version) VALUES (:model, 'stable', 1)"
        connection.execute(text(insert), {"model": model.model})
        put = partial(api.put, url, headers={"If-None-Match": "*"})
        answers = [pool.submit(put, json={"version": version}) for version in (1, 2)]
        wait_for(lambda: num_waiting(db) >= 2, "both callers insert")
        connection.rollback()
    assert sorted(one.result().status_code for one in answers) == [200, 412]


def num_waiting(db: Database) -> int:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ILIKE '%INTO aliases%'"
    with db.autocommit() as connection:
        return int(connection.execute(text(waiting)).scalar_one())


@pytest.mark.usefixtures("second")
def test_a_known_key_has_its_job_after_its_version_was_retired(api: httpx2.Client, model: ModelVersion) -> None:
    once, body = {"Idempotency-Key": "once"}, {"model": f"{model.model}@1", "input": {"prompt": "hi"}}
    first = api.post("/v1/jobs", json=body, headers=once)
    assert api.put(f"/v1/models/{model.model}/aliases/default", json={"version": 2}).status_code == 200
    assert api.post(f"/v1/model_versions/{model.model}@1/retire").status_code == 200
    wait_for(lambda: api.post("/v1/jobs", json=body).status_code == 404, "new jobs of the version are refused")
    again = api.post("/v1/jobs", json=body, headers=once)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert again.headers["idempotent-replayed"] == "true"
    other = api.post("/v1/jobs", json={**body, "priority": 1}, headers=once)
    assert other.status_code == 404, "another body is no replay"


@pytest.mark.usefixtures("second")
def test_bad_changes_are_refused(api: httpx2.Client) -> None:
    url = "/v1/models/tiny/aliases/stable"
    bodies: list[dict[str, Any]] = [{}, {"version": 0}, {"version": "x"}, {"version": 2**40}, {"version": 1, "more": 1}]
    assert [api.put(url, json=body).status_code for body in bodies] == [400] * len(bodies)
    bad_headers = [
        {"If-Match": "*"},
        {"If-Match": "x"},
        {"If-None-Match": '"1"'},
        {"If-Match": "1", "If-None-Match": "*"},
    ]
    assert [api.put(url, json={"version": 1}, headers=bad).status_code for bad in bad_headers] == [400] * len(
        bad_headers
    )
    assert api.put("/v1/models/tiny/aliases/7", json={"version": 1}).status_code == 400
    for path in ("tiny@9", "tiny", "nobody@1", "tiny@default", "tiny@99999999999"):
        assert error_of(api.post(f"/v1/model_versions/{path}/retire"))["code"] == "model_not_found"
    assert api.put("/v1/models/tiny/aliases/a", json={"version": 9}).status_code == 404
    assert api.delete("/v1/models/tiny/aliases/default").status_code == 409


@pytest.mark.usefixtures("second")
def test_a_key_changes_and_sees_only_the_models_on_its_list(db: Database, tenant: str, make_client: MakeClient) -> None:
    scopes = ["models:read", "registry:admin"]
    limited = make_client(api_keys.create_key(db, tenant, "other", scopes, models=["other"], actor="tests"))
    assert limited.get("/v1/model_versions").json()["data"] == []
    assert limited.put("/v1/models/tiny/aliases/default", json={"version": 2}).status_code == 403
    assert limited.post("/v1/model_versions/tiny@2/retire").status_code == 403
    weak = make_client(api_keys.create_key(db, tenant, "weak", ["models:admin", "models:read"], actor="tests"))
    assert weak.put("/v1/models/tiny/aliases/default", json={"version": 2}).status_code == 403
