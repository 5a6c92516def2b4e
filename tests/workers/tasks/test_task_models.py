"""How tasks read their claims and how servers are started: files into passages, calls of tools, and policies."""

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.encoders.embed.inputs import Embedder
from headrace.features.files import files
from headrace.features.flows import model as call_tool
from headrace.features.flows.model import ToolModel
from headrace.features.flows.store.approvals import Verdict
from headrace.features.flows.task import CALL_TOOL
from headrace.features.flows.tools import tools
from headrace.features.flows.tools.tool_definition import HttpTool
from headrace.features.flows.tools.tool_results import ToolOrder
from headrace.features.policy.output_policy import CompiledPolicies, OutputRules
from headrace.features.retrieval import served as ingest
from headrace.features.retrieval.document_text import DocumentText
from headrace.features.retrieval.passages import FilePassages
from headrace.features.retrieval.served import FileReader, ReadersBusy
from headrace.models.engine.requests import EncodeOutput, FinishReason
from headrace.models.external.upstream import UpstreamLost
from headrace.policy.budget import ScanTooLong
from headrace.policy.documents import PolicyDocument
from headrace.policy.outputs import GuardedOutput, OutputFormat
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy
from headrace.prompts.tokenizer import ByteTokenizer
from headrace.store.errors import InvalidRequest, ModelLoadError, NotFound, SettingsError
from headrace.store.jobs.claims import Claim, Finish
from headrace.store.payloads.job_payload import PinnedPolicy
from headrace.store.payloads.tool_approval import ApprovalState
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.registry.models import ModelVersion
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.workers.runs import outcome
from headrace.workers.runs.attempt_spans import AttemptSpans
from headrace.workers.runs.engine_admission import EngineAdmission
from headrace.workers.runs.in_flight import Attempt, InFlightAttempts
from headrace.workers.runs.outcome import Retry
from headrace.workers.tasks import generate_external, own_task
from headrace.workers.tasks.generate_external import NO_SERVER, ServerStart, load_external_model
from headrace.workers.tasks.own_task import OwnWork
from tests.processes import wait_for
from tests.workers.engine_stub import EngineStub
from tests.workers.tasks.test_encoding import OneRequest

ANY: Any = None
CLAIM = Claim("job_1", "ten_1", 1, 1, 1, "tools", 1, {}, 1, None, 0.0, 3, task="call_tool")
TOOL = HttpTool(url="https://tools.example.com/")


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The tool of a tenant, and the verdict on a call; a test may change both."""
    found: dict[str, Any] = {"tool": TOOL, "verdict": None, "asked": []}

    def called(_db: Any, tenant_id: str, name: str) -> Any:
        found["asked"].append((tenant_id, name))
        return found["tool"]

    def verdict_of(_db: Any, tenant_id: str, job_id: str) -> Any:
        found["asked"].append((tenant_id, job_id))
        return found["verdict"]

    monkeypatch.setattr(tools, "called", called)
    monkeypatch.setattr(call_tool, "verdict_of", verdict_of)
    return found


def order_of(**given: Any) -> ToolOrder:
    model = ToolModel(ANY, ANY, CALL_TOOL)
    payload = {"input": {"tool": "weather", "arguments": {"city": "Rome"}, **given}}
    context: Any = SimpleNamespace(db=None)
    job = model.read_claim(replace(CLAIM, payload=payload), context)
    assert len(job.inputs) == 1
    order: ToolOrder = job.options
    return order


def test_a_call_has_the_tool_of_its_tenant_and_the_job_as_its_key(stored: dict[str, Any]) -> None:
    assert order_of() == ToolOrder("weather", '{"city": "Rome"}', "ten_1", "job_1", TOOL, None)
    assert stored["asked"] == [("ten_1", "weather"), ("ten_1", "job_1")]
    assert order_of(arguments="{broken").arguments == "{broken"
    stored["tool"] = None
    assert order_of().tool is None


def test_a_call_is_refused_by_its_payload_or_its_approval(stored: dict[str, Any]) -> None:
    assert str(order_of(refusal="No.").refusal).endswith("not made: No.")
    assert order_of(refusal="city is no text", is_fault=True).refusal == "city is no text"
    stored["verdict"] = Verdict(ApprovalState.REFUSED, "Too dear.")
    assert str(order_of().refusal).endswith("not made: Too dear.")
    assert order_of(refusal="city is no text", is_fault=True).refusal == "city is no text"


MASK = {"id": "words", "deny": {"phrases": ["the mill"]}, "action": "mask", "stage": "output"}


def own_work(monkeypatch: pytest.MonkeyPatch, output: dict[str, Any], *rules: dict[str, Any]) -> Any:
    """The outcome of a call that returned ``output`` under a tenant's policy."""

    def guard_of(tenant_id: str, pinned: Any, given: Any) -> OutputRules | None:
        assert (tenant_id, given.tool) == ("ten_1", "weather")
        policy = Policy(PolicyDocument.model_validate({"rules": [*rules]}))
        return OutputRules(policy, PlaceholderMap(), OutputFormat.TEXT) if rules else None

    monkeypatch.setattr(own_task, "open_guards", lambda _db: SimpleNamespace(output=guard_of))
    engine: Any = OneRequest(EncodeOutput("job_1", (json.dumps(output).encode(),), FinishReason.STOP, 1, 0.5))
    in_flight = InFlightAttempts()
    attempt = Attempt(
        replace(CLAIM, payload={"input": {"tool": "weather"}, "policy": {"model": "*", "version": 1}}),
        100.0,
        None,
        100.0,
    )
    in_flight.add(attempt)
    times = SimpleNamespace(queue=SimpleNamespace(observe=float), prefill=SimpleNamespace(observe=float))
    context: Any = SimpleNamespace(
        admission=EngineAdmission(EngineStub(), max_jobs=1, max_slots=1),
        in_flight=in_flight,
        spans=AttemptSpans(),
        frames=None,
        metrics=SimpleNamespace(times={1: times}),
        db=None,
    )
    read = ToolModel(ANY, ANY, CALL_TOOL).read
    model: Any = SimpleNamespace(
        spec=CALL_TOOL, spec_of=lambda _claim: CALL_TOOL, read_claim=lambda claim, _context: read(claim.payload)
    )
    return OwnWork(engine, context, model).compute(attempt)


def test_the_policy_reads_the_output_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"text": "by the mill", "is_error": False}
    plain = own_work(monkeypatch, said)
    assert (plain.output, plain.state) == (said, JobState.SUCCEEDED)
    masked = own_work(monkeypatch, said, MASK)
    assert masked.output["text"] == "by *** ****"
    assert [(hit["rule"], hit["action"], hit["count"]) for hit in masked.output["policy"]] == [("words", "mask", 1)]
    assert "policy" not in own_work(monkeypatch, {"text": "by the river"}, MASK).output
    blocked = own_work(monkeypatch, said, {**MASK, "action": "block"})
    assert (blocked.state, blocked.output, blocked.error["rule"]) == (JobState.FAILED, None, "words")
    assert blocked.usage["input_tokens"] == 1


def test_an_output_that_takes_too_long_to_look_through_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_long(*_: Any) -> None:
        raise ScanTooLong(5.0)

    monkeypatch.setattr(GuardedOutput, "feed", too_long)
    with pytest.raises(InvalidRequest) as raised:
        own_work(monkeypatch, {"text": "x"}, MASK)
    failed = outcome.refused(CLAIM, raised.value)
    assert isinstance(failed, Finish)
    assert (failed.error or {})["code"] == "policy_scan_too_long"


SOURCE: dict[str, Any] = {
    "vector_store_id": "vs_1",
    "file_id": "file_1",
    "filename": "mill.pdf",
    "ticket": "tkt_1",
    "num_bytes": 9,
    "chunk_tokens": 12,
    "overlap_tokens": 0,
}


class Documents:
    """A file of pages in the storage of a tenant."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *pages: str) -> None:
        starts = tuple(sum(map(len, pages[:number])) for number in range(len(pages)))
        self.document = DocumentText("".join(pages), starts if len(pages) > 1 else ())
        self.asked: list[Any] = []
        self.reader = FileReader(
            ByteTokenizer(), Embedder(64, 2, default_prompt="d: "), Settings(home=Path("/nowhere"))
        )
        monkeypatch.setattr(files, "get", self.get)
        monkeypatch.setattr(ingest, "open_blobs", lambda _settings: self)
        monkeypatch.setattr(ingest, "read_document", self.read)

    def get(self, _db: Any, tenant_id: str, file_id: str) -> Any:
        self.asked.append((tenant_id, file_id))
        return SimpleNamespace(digest="digest")

    @contextmanager
    def open(self, digest: str) -> Iterator[io.BytesIO]:
        self.asked.append(digest)
        yield io.BytesIO()

    def read(self, _content: Any, filename: str, reader: str) -> DocumentText:
        self.asked.append((filename, reader))
        return self.document

    def job(self, **changes: Any) -> Any:
        policy = changes.pop("policy", None)
        payload = {"ingest": SOURCE | changes, **({} if policy is None else {"policy": policy})}
        return self.reader.read(replace(CLAIM, task="embed", payload=payload), ANY)


def test_a_file_becomes_passages_with_their_places_and_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Documents(monkeypatch, "The mill. ", "It grinds. ")
    job = found.job()
    assert found.asked == [("ten_1", "file_1"), "digest", ("mill.pdf", Settings().document_reader)]
    stored = job.stored((b"1", b"2"))
    assert [(one.text.strip(), one.start, one.page) for one in stored.passages] == [
        ("The mill.", 0, 1),
        ("It grinds.", 10, 2),
    ]
    assert stored == FilePassages("tkt_1", "ten_1", stored.passages, (b"1", b"2"))
    assert [bytes(one) for one in job.inputs] == [f"d: {one.text}".encode() for one in stored.passages]
    assert job.output(()) == {
        "vector_store_id": "vs_1",
        "file_id": "file_1",
        "passages": len(stored.passages),
        "characters": 21,
    }
    with pytest.raises(InvalidRequest, match="no text"):
        Documents(monkeypatch, " ").job()
    monkeypatch.setattr(ingest, "MAX_PASSAGES", 1)
    with pytest.raises(InvalidRequest, match="1 passages"):
        Documents(monkeypatch, "The mill. ", "It grinds. ").job()


def test_a_policy_reads_a_file_page_by_page_and_pages_keep_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = {"id": "mail", "kinds": ["email"], "action": "redact", "stage": "input"}
    policy = Policy(PolicyDocument.model_validate({"rules": [rule]}))
    monkeypatch.setattr(CompiledPolicies, "get", lambda _self, _tenant, _pinned: policy)
    found = Documents(monkeypatch, "ann@example.com ", "The mill")
    pinned = PinnedPolicy(model="*", version=1).model_dump(mode="json")
    passages = found.job(policy=pinned).stored(()).passages
    assert "".join(one.text for one in passages).replace(" ", "") == "<EMAIL_1>Themill"
    assert [(one.start, one.page) for one in passages] == [(0, 1), (len("<EMAIL_1> "), 2)]
    single = Documents(monkeypatch, "ann@example.com")
    (only,) = single.job(policy=pinned).stored(()).passages
    assert (only.text, only.page) == ("<EMAIL_1>", None)


def test_few_files_are_read_at_once_and_another_tenant_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "WAIT_S", 0.2)
    found, end = Documents(monkeypatch, "The mill"), threading.Event()
    reading: list[str] = []

    def read(*_: Any) -> DocumentText:
        reading.append("x")
        end.wait(60)
        return found.document

    monkeypatch.setattr(ingest, "read_document", read)
    threads = [threading.Thread(target=found.job) for _ in range(ingest.MOST_AT_ONCE - 1)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(reading) == len(threads), "the tenant's files are read")
        with pytest.raises(ReadersBusy) as busy:
            found.job()
        again = outcome.refused(CLAIM, busy.value)
        assert isinstance(again, Retry)
        assert (again.charge, again.crashed, len(reading)) == (False, False, len(threads))
        monkeypatch.setattr(ingest, "read_document", found.read)
        stranger = replace(CLAIM, task="embed", tenant_id="ten_2", payload={"ingest": SOURCE})
        assert found.reader.read(stranger, ANY).inputs
    finally:
        end.set()
        for thread in threads:
            thread.join(60)
    assert found.job().inputs


def test_a_file_that_is_gone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Documents(monkeypatch, "x")

    def gone(*_: Any) -> Any:
        raise NotFound("no such file")

    monkeypatch.setattr(files, "get", gone)
    with pytest.raises(NotFound) as refused:
        found.job()
    assert (refused.value.code, "file_1" in refused.value.message) == ("file_gone", True)


VLLM = EngineSpec(kind=EngineKind.VLLM, served_model="x")


@pytest.mark.parametrize(
    ("spec", "start", "reason"),
    [
        (EngineSpec(), ServerStart(EngineKind.VLLM), "engine native"),
        (VLLM, ServerStart(EngineKind.SGLANG), "engine vllm"),
        (
            VLLM.model_copy(update={"url": "http://gpu:8000"}),
            ServerStart(None, ("--seed", "3")),
            "--seed 3",
        ),
    ],
)
def test_a_server_that_does_not_fit_its_version_is_refused(
    version: ModelVersion, spec: EngineSpec, start: ServerStart, reason: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        load_external_model(replace(version, engine=spec), Settings(), ANY, start)
    assert reason in refused.value.message


class Servers:
    """Servers that start and answer as a test says; notes what a worker does with them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.answer: Any = SimpleNamespace()
        self.reason: str | None = None
        monkeypatch.setattr(generate_external, "tokenizer_for", lambda *_: ByteTokenizer())
        monkeypatch.setattr(generate_external, "wake", lambda *given: self.told.append(("wake", *given)))
        monkeypatch.setattr(generate_external, "free_port", lambda _host, _port: 8123)
        monkeypatch.setattr(generate_external, "server_argv", lambda *_, **how: [str(how["port"]), *how["arguments"]])
        monkeypatch.setattr(generate_external, "ServerProcess", self.process)
        monkeypatch.setattr(generate_external, "connect", self.connect)
        monkeypatch.setattr(generate_external, "ServerCheck", self.check)

    def process(self, name: str, argv: list[str], env: dict[str, str], *_: Any) -> Any:
        self.told.append(("process", name, argv, len(env["VLLM_API_KEY"]) > 20))
        return SimpleNamespace(
            start=lambda: self.told.append(("start",)), stop=lambda: self.told.append(("stop",)), name=name
        )

    def connect(self, _spec: EngineSpec, *, url: str, api_key: str) -> Any:
        self.told.append(("connect", url, api_key if len(api_key) < 20 else "own"))

        async def describe() -> Any:
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        async def close() -> None:
            self.told.append(("close",))

        return SimpleNamespace(describe=describe, close=close)

    def check(self, _spec: EngineSpec, *, is_own: bool, note: Any = None) -> Any:
        if note is not None:
            self.told.append(("own", is_own))
        return SimpleNamespace(refuse=lambda _info: self.reason, description="vLLM")


HERE = Settings(engine_api_key="mine")


def test_a_worker_starts_its_own_server_and_ends_it_with_the_model(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = Servers(monkeypatch)
    own = replace(version, engine=VLLM)
    model = load_external_model(own, HERE, ANY, ServerStart(EngineKind.VLLM, ("--seed", "3")))
    address = "http://127.0.0.1:8123"
    assert servers.told == [
        ("process", "vllm", ["8123", "--seed", "3"], True),
        ("start",),
        ("connect", address, "own"),
        ("close",),
        ("own", True),
        ("connect", address, "own"),
    ]
    model.close()
    assert servers.told[6:] == [("stop",)]
    assert (model.engine_description, model.default_settings) == ("vLLM", {"max_slots": 256})
    servers.told.clear()
    servers.reason = "it runs another model"
    with pytest.raises(ModelLoadError) as refused:
        load_external_model(own, HERE, ANY, NO_SERVER)
    assert address in refused.value.message
    assert servers.told[-1] == ("stop",), "what was started is ended"


def test_a_server_of_the_operator_may_be_away_and_one_of_a_host_is_woken(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = Servers(monkeypatch)
    servers.answer = UpstreamLost("connection refused")
    operators = replace(version, engine=VLLM.model_copy(update={"url": "http://gpu:8000"}))
    model = load_external_model(operators, HERE, ANY, NO_SERVER)
    assert servers.told == [
        ("connect", "http://gpu:8000", "mine"),
        ("close",),
        ("own", False),
        ("connect", "http://gpu:8000", "mine"),
    ]
    model.close()
    servers.told.clear()
    load_external_model(replace(version, engine=VLLM), HERE, ANY, ServerStart(url="http://127.0.0.1:9001"))
    assert servers.told[:2] == [("wake", "127.0.0.1", 9001, "mine"), ("connect", "http://127.0.0.1:9001", "mine")]
    assert ("own", True) in servers.told
