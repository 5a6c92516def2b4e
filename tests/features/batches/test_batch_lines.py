"""Lines of a batch without services: as they are read and refused, and as jobs."""

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.batches.batch_input import (
    LineRefused,
    custom_id_of,
    first_bytes,
    model_of,
    read_lines,
    read_request,
)
from headrace.features.batches.batch_lines import LineReader
from headrace.features.batches.batch_steps import ParsedLine
from headrace.features.batches.batches import Batch
from headrace.features.batches.line_targets import ModelTarget, PipelineTarget, target_of
from headrace.producer_api.tasks.registry import read_task
from headrace.store.errors import InvalidRequest, NotFound, Unavailable
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.registry.models import ModelVersion
from headrace.store.tenants.api_keys import Principal
from headrace.store.tracing.tracing import TraceContext
from tests.features.batches.making import BATCH, BODY, PRINCIPAL, SETTINGS, START, URL, line, raw
from tests.refusals import Naming


def test_lines_are_numbered_with_blank_ones_and_bounded() -> None:
    content = b"12345\n\n  \n123456\n1234567890\n1\n12345678"
    read = [(one.number, one.text, one.next_offset) for one in read_lines(io.BytesIO(content), 6)]
    assert read == [
        (1, b"12345\n", 6),
        (4, b"123456\n", 17),
        (5, None, 28),
        (6, b"1\n", 30),
        (7, None, 38),
    ]
    again = [(one.number, one.text) for one in read_lines(io.BytesIO(content), 6, number=6, offset=28)]
    assert again == [(6, b"1\n"), (7, None)]


def test_a_piece_of_lines_has_so_many_bytes_and_at_least_one_line() -> None:
    lines = [raw(b"123"), raw(None), raw(b"45"), raw(b"6")]
    assert [len([*first_bytes(lines, most)]) for most in (1, 3, 4, 5, 6, 99)] == [1, 1, 3, 3, 4, 4]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, ("request_too_large", "1000 bytes", None)),
        (b'{"a":"\0"}', ("invalid_value", "U+0000", None)),
        (b'{"a":"\\u0000"}', ("invalid_value", "U+0000", None)),
        (b"[]", ("invalid_json_line", "JSON object", None)),
        (
            b"[" * 16_385,
            (
                "invalid_json_line",
                "16385 lists and objects",
                None,
            ),
        ),
        *(
            (
                line(custom_id),
                (
                    "missing_required_parameter",
                    "1 to 512",
                    "custom_id",
                ),
            )
            for custom_id in (..., None, 5, "", "x" * 513)
        ),
        (line(method="post"), ("invalid_method", "POST", "method")),
        (line(url="/v1/embeddings"), ("mismatched_url", URL, "url")),
        (line(body=[]), ("missing_required_parameter", "`body`", "body")),
        (line(body=BODY | {"max_tokens": 0}), ("invalid_value", "1", "body.max_tokens")),
        (line(body=BODY | {"stream": True}), ("invalid_value", "`stream`", "body.stream")),
    ],
)
def test_a_line_that_is_no_request_says_why(text: bytes | None, error: tuple[str, str, str | None]) -> None:
    with pytest.raises(LineRefused) as caught:
        read_request(raw(text, 9), URL, 1000)
    code, named, param = error
    refused = caught.value
    assert (refused.code, refused.message, refused.param) == (code, Naming(named), param)
    assert refused.at(9) == {"code": code, "message": refused.message, "param": param, "line": 9}


def test_a_line_is_a_request_of_its_url() -> None:
    for custom_id in ("a", "x" * 512):
        found: Any = read_request(raw(line(custom_id)), URL, 1000)
        assert (found.custom_id, found.wanted.job.model) == (custom_id, "tiny")
    with pytest.raises(LineRefused, match="not valid JSON"):
        read_request(raw(b"{"), URL, 1000)


def test_a_line_that_is_refused_has_a_name_and_a_model_where_it_says_so() -> None:
    cases = [line("a"), line(5), b"{", None, b"[" * 16_385, line(body=BODY | {"model": 5}), line(body={"model": "a\0"})]
    assert [custom_id_of(raw(one, 4)) for one in cases] == ["a", "line_4", "line_4", "line_4", "line_4", "a", "a"]
    assert [model_of(raw(one)) for one in cases] == ["tiny", "tiny", "", "", "", "", ""]


VERSION = ModelVersion("tiny", 3, "generate", "fake", "fake:tiny", "0" * 64, "float32", 512, {}, START, None)


class Submitting:
    """What lines are submitted to: it notes the calls, and answers with a version and with the draft of a job."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[Any] = []
        self.made: list[Any] = []

    def version_of(self, principal: Principal, name: str, *, is_pinned: bool = False) -> ModelVersion:
        self.asked.append((principal.key_id, name, is_pinned))
        if name == "gone":
            raise NotFound("no model gone", code="model_not_found", param="model")
        return VERSION

    def guard_for(self, principal: Principal, name: str) -> None:
        self.asked.append(name)

    def make_job(self, principal: Principal, job: Any, version: ModelVersion, **fields: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.made.append((principal.key_id, job.service_class, job.webhook, version.name, fields))
        return Draft(fields)


class Draft(SimpleNamespace):
    """A job that ``replace`` can change, as it does a dataclass."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(steps=(), fields=fields)

    def __replace__(self, **changes: Any) -> "Draft":
        made = Draft(self.fields)
        made.__dict__.update(changes)
        return made


def reader(submissions: Any, monkeypatch: pytest.MonkeyPatch) -> LineReader:
    monkeypatch.setattr(
        "headrace.features.batches.batch_lines.replace", lambda one, **changes: one.__replace__(**changes)
    )
    nothing: Any = None
    return LineReader(SETTINGS, nothing, submissions, nothing)


def test_a_line_is_a_job_of_the_batch_class_within_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    submissions = Submitting()
    lines = reader(submissions, monkeypatch)
    for own_ms, remaining_s, expected_s in (
        (None, 50.0, 50.0),
        (2000, 50.0, 2.0),
        (90_000, 50.0, 50.0),
        (None, -3.0, 0.001),
    ):
        job = {} if own_ms is None else {"job": {"deadline_ms": own_ms}}
        taken: Any = lines.take(BATCH, PRINCIPAL, raw(line(body=BODY | job), 4), remaining_s)
        assert (taken.line, taken.custom_id, taken.refusal) == (4, "a", None)
        assert (taken.job.deadline_s, taken.job.webhook, taken.job.fingerprint) == (expected_s, {"events": []}, None)
    key, service_class, webhook, name, fields = submissions.made[0]
    assert (key, service_class, webhook, name) == ("key_1", ServiceClass.BATCH, None, "tiny@3")
    assert fields == {"project_id": "project", "response": None, "is_stored": None, "trace": None}
    assert submissions.asked[:2] == [("key_1", "tiny@3", True), "tiny"], "the version that the batch began with"


def test_a_line_that_is_refused_has_the_answer_of_its_route(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(submissions: Submitting, text: bytes) -> ParsedLine:
        return reader(submissions, monkeypatch).take(BATCH, PRINCIPAL, raw(text, 4), 50.0)

    refused = InvalidRequest("too long", code="context_length_exceeded", param="input")
    found = taken(Submitting(refused), line())
    error = {"message": "too long", "type": "invalid_request_error", "param": "prompt", "code": refused.code}
    assert found == ParsedLine(4, "a", None, {"status_code": 400, "body": {"error": error}})
    found = taken(Submitting(), line(method="GET"))
    assert found.refusal is not None
    assert (found.custom_id, found.refusal["body"]["error"]["param"]) == ("a", "method")
    for text in (line("x" * 513), line("\0")):
        assert taken(Submitting(), text).custom_id == "line_4", "its own name cannot be stored"
    found = taken(Submitting(ValueError("secret")), line())
    assert found.refusal is not None
    assert (found.refusal["status_code"], "secret" in str(found.refusal)) == (500, False)
    with pytest.raises(Unavailable):
        taken(Submitting(Unavailable("away")), line())
    refused_by_postgres = reader(Submitting(), monkeypatch).refuse(raw(line(), 4))
    assert refused_by_postgres.custom_id == "line_4"
    assert refused_by_postgres.refusal is not None
    assert refused_by_postgres.refusal["body"]["error"]["code"] == "invalid_value"


def test_a_line_keeps_the_version_of_the_start() -> None:
    submissions: Any = Submitting()
    no_pipelines: Any = SimpleNamespace()
    wanted: Any = read_task(URL, BODY)

    def target(batch: Batch, name: str = "tiny") -> Any:
        given = read_task(URL, BODY | {"model": name})
        return target_of(submissions, no_pipelines, batch, PRINCIPAL, given)

    found = target(BATCH)
    assert (found.model, found.policed_model, found.pins(PRINCIPAL)) == ("tiny", "tiny", {"tiny": "tiny@3"})
    target(replace(BATCH, model_versions=None))
    assert submissions.asked == [("key_1", "tiny@3", True), ("key_1", "tiny", False)]
    with pytest.raises(NotFound) as caught:
        target(BATCH, "other")
    assert ("'other'" in caught.value.message, caught.value.code, caught.value.param) == (
        True,
        "model_not_found",
        "model",
    )
    trace = TraceContext("1" * 32, "2" * 16, True)
    made = ModelTarget(submissions, no_pipelines, wanted, VERSION)
    made.make_job(replace(BATCH, project_id=None), PRINCIPAL, trace)
    assert submissions.made[0][-1] == {"project_id": None, "response": None, "is_stored": None, "trace": trace}


class Flows:
    """Makes jobs of several steps; it notes the caller and the arguments."""

    db = "db"

    def __init__(self) -> None:
        self.made: list[Any] = []

    def make_one(self, owner: Principal, job: Any, version: ModelVersion, **fields: Any) -> None:
        self.made.append((owner.key_id, job.service_class, job.webhook, version.name, fields))

    def make_job(self, owner: Principal, job: Any, version: Any, models: Any, **fields: Any) -> None:
        self.made.append((owner.key_id, job.service_class, job.webhook, version, models, fields))

    def models_of(self, owner: Principal, _version: Any) -> dict[str, str]:
        assert owner is PRINCIPAL
        return {"tiny": "tiny@3"}


def test_lines_of_several_steps_count_for_the_project_of_their_batch() -> None:
    flows: Any = Flows()
    submissions: Any = Submitting()
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "server_tools": {"names": ["calculator"]}}
    calling: Any = read_task("/v1/chat/completions", asked)
    response: Any = object()
    ModelTarget(submissions, flows, replace(calling, response=response), VERSION).make_job(BATCH, PRINCIPAL, None)
    fields = {"project_id": "project", "response": response}
    assert flows.made == [("key_1", ServiceClass.BATCH, None, "tiny@3", fields)]
    assert submissions.made == []
    url = "/v1/pipelines/digest/jobs"
    piped: Any = read_task(url, {"input": {"text": "x"}, "webhook": {"url": "https://example.com/"}})
    version: Any = SimpleNamespace(pinned="pl_1@2")
    target = PipelineTarget(flows, piped, version, url)
    assert (target.model, target.policed_model) == (None, "")
    assert target.pins(PRINCIPAL) == {url: "pl_1@2", "tiny": "tiny@3"}
    for models in ({"tiny": "tiny@3"}, None):
        target.make_job(replace(BATCH, model_versions=models), PRINCIPAL, None)
        of_job = ("key_1", ServiceClass.BATCH, None, version, models or {}, {"project_id": "project"})
        assert flows.made[-1] == of_job
