"""Files of batches without services: lines as they are read and refused, results as they are written, and views."""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from producer_api.batches import batch_results, batch_validation
from producer_api.batches.batch_input import (
    LineRefused,
    RawLine,
    Request,
    custom_id_of,
    first_bytes,
    model_of,
    read_lines,
    read_request,
)
from producer_api.batches.batch_lines import LineReader
from producer_api.batches.batch_results import publish
from producer_api.batches.batch_routes import BatchRequest, new_batch
from producer_api.batches.batch_validation import MESSAGES_URL, validate
from producer_api.batches.line_targets import ModelTarget, target_of
from producer_api.batches.message_batch_views import (
    message_batch,
    message_batch_id,
    message_batch_list,
    message_result,
    own_id,
)
from producer_api.files.file_views import batch_list, batch_object
from producer_api.submission.draft_job import Origin
from producer_api.tasks.registry import read_task
from store.batches.batch_steps import ParsedLine, ResultFiles, StoredLine
from store.batches.batches import Batch
from store.errors import InvalidRequest, NotFound, Unavailable
from store.payloads.job_payload import ServiceClass
from store.registry.models import ModelVersion
from store.schema.batch_states import BatchStatus
from store.schema.job_states import JobState
from store.settings import Settings
from store.tenants.api_keys import Principal
from store.tracing.trace_context import TraceContext

URL = "/v1/completions"
BODY = {"model": "tiny", "prompt": "hi"}
START = datetime.fromtimestamp(1_800_000_000, UTC)
SETTINGS = Settings(database_url="postgresql://x/y", redis_url="redis://x").model_copy(
    update={"max_body_bytes": 1000, "max_batch_lines": 3}
)
PRINCIPAL = Principal("acme", "key_1", frozenset())


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


BATCH = Batch(
    id="batch_1",
    tenant_id="acme",
    status=BatchStatus.FINALIZING,
    url=URL,
    input_file_id="file_1",
    input_digest="d",
    api_key_id="key_1",
    project_id="project",
    completion_window="24h",
    metadata={"k": "v"},
    output_ttl_s=None,
    fingerprint=None,
    model="tiny",
    model_versions={"tiny": "tiny@3"},
    errors=[{"code": "c", "message": "m", "param": "p", "line": 2}],
    next_line=5,
    next_offset=6,
    num_total=7,
    num_completed=3,
    num_failed=2,
    input_tokens=10,
    output_tokens=20,
    output_file_id="file_2",
    error_file_id="file_3",
    created_at=START,
    in_progress_at=at(1),
    expires_at=at(100),
    finalizing_at=at(2),
    completed_at=at(3),
    failed_at=at(4),
    expired_at=at(5),
    cancelling_at=at(6),
    cancelled_at=at(7),
    purged_at=None,
    traceparent=None,
)


def line(custom_id: object = "a", **changes: Any) -> bytes:
    given = {"custom_id": custom_id, "method": "POST", "url": URL, "body": BODY} | changes
    return json.dumps({name: value for name, value in given.items() if value is not ...}).encode()


def raw(text: bytes | None, number: int = 1) -> RawLine:
    return RawLine(number, text, 0)


# Lines as they are read.


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
        (None, ("request_too_large", "the line is over 1000 bytes", None)),
        (b'{"a":"\0"}', ("invalid_value", "the line contains U+0000, which cannot be stored: remove it", None)),
        (b'{"a":"\\u0000"}', ("invalid_value", "the line contains U+0000, which cannot be stored: remove it", None)),
        (b"[]", ("invalid_json_line", "the line must be a JSON object", None)),
        (
            b"[" * 16_385,
            (
                "invalid_json_line",
                "the line has 16385 lists and objects, and 16384 are accepted: send less at once",
                None,
            ),
        ),
        *(
            (
                line(custom_id),
                (
                    "missing_required_parameter",
                    "`custom_id` is required: a text of 1 to 512 characters",
                    "custom_id",
                ),
            )
            for custom_id in (..., None, 5, "", "x" * 513)
        ),
        (line(method="post"), ("invalid_method", "`method` must be POST", "method")),
        (line(url="/v1/embeddings"), ("mismatched_url", f"`url` must be {URL}, the batch's endpoint", "url")),
        (line(body=[]), ("missing_required_parameter", "`body` is required: a JSON object", "body")),
        (line(body=BODY | {"max_tokens": 0}), ("invalid_value", None, "body.max_tokens")),
        (line(body=BODY | {"stream": True}), ("invalid_value", None, "body.stream")),
    ],
)
def test_a_line_that_is_no_request_says_why(text: bytes | None, error: tuple[str, str | None, str | None]) -> None:
    with pytest.raises(LineRefused) as caught:
        read_request(raw(text, 9), URL, 1000)
    code, message, param = error
    refused = caught.value
    assert (refused.code, refused.param) == (code, param)
    if message is not None:
        assert refused.message == message
    assert refused.at(9) == {"code": code, "message": refused.message, "param": param, "line": 9}


def test_a_line_is_a_request_of_its_url() -> None:
    for custom_id in ("a", "x" * 512):
        found = read_request(raw(line(custom_id)), URL, 1000)
        assert (found.custom_id, found.wanted.job.model) == (custom_id, "tiny")  # type: ignore[union-attr] # no pipeline
    with pytest.raises(LineRefused, match="not valid JSON"):
        read_request(raw(b"{"), URL, 1000)


def test_a_line_that_is_refused_has_a_name_and_a_model_where_it_says_so() -> None:
    cases = [line("a"), line(5), b"{", None, b"[" * 16_385, line(body=BODY | {"model": 5}), line(body={"model": "a\0"})]
    assert [custom_id_of(raw(one, 4)) for one in cases] == ["a", "line_4", "line_4", "line_4", "line_4", "a", "a"]
    assert [model_of(raw(one)) for one in cases] == ["tiny", "tiny", "", "", "", "", ""]


# Lines as jobs.


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

    def policy_for(self, principal: Principal, name: str) -> None:
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
    monkeypatch.setattr("producer_api.batches.batch_lines.replace", lambda one, **changes: one.__replace__(**changes))
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
    assert refused_by_postgres.refusal["body"]["error"]["message"] == "a value of the line cannot be stored"


def test_a_line_keeps_the_version_of_the_start() -> None:
    submissions: Any = Submitting()
    wanted: Any = read_task(URL, BODY)

    def target(batch: Batch, name: str = "tiny") -> Any:
        given = read_task(URL, BODY | {"model": name})
        return target_of(submissions, SimpleNamespace(), batch, PRINCIPAL, given)  # type: ignore[arg-type] # nothing of a pipeline

    found = target(BATCH)
    assert (found.model, found.policed_model, found.pins(PRINCIPAL)) == ("tiny", "tiny", {"tiny": "tiny@3"})
    target(replace(BATCH, model_versions=None))
    assert submissions.asked == [("key_1", "tiny@3", True), ("key_1", "tiny", False)]
    with pytest.raises(NotFound) as caught:
        target(BATCH, "other")
    assert (caught.value.message, caught.value.code, caught.value.param) == (
        "there was no model 'other' when the batch began",
        "model_not_found",
        "model",
    )
    trace = TraceContext("1" * 32, "2" * 16, True)
    made = ModelTarget(submissions, SimpleNamespace(), wanted, VERSION)  # type: ignore[arg-type] # nothing of a pipeline
    made.make_job(replace(BATCH, project_id=None), PRINCIPAL, trace)
    assert submissions.made[0][-1] == {"project_id": None, "response": None, "is_stored": None, "trace": trace}


# The validation of an input.


class Contents:
    """A storage with one content, and the drafts that were written."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content
        self.written: list[Any] = []

    @contextmanager
    def open(self, digest: str) -> Iterator[io.BytesIO]:
        assert digest == "d"
        yield io.BytesIO(self.content)

    def create(self) -> Any:
        self.written.append(draft := SimpleNamespace(lines=[], is_dropped=False))
        draft.write = draft.lines.append
        draft.drop = lambda: setattr(draft, "is_dropped", True)
        return draft


class Reading:
    """Reads the lines of an input: ``custom_id`` is their name, and one of ``bad`` is refused."""

    def __init__(self) -> None:
        self.owned: list[str] = []

    def owner(self, batch: Batch) -> Principal:
        self.owned.append(batch.id)
        return PRINCIPAL

    def read(self, batch: Batch, owner: Principal, raw_line: RawLine) -> tuple[Any, Any]:
        given = json.loads(raw_line.text or b"{}")
        if given.get("bad"):
            raise LineRefused("invalid_value", f"quotes {given['bad']}", "body.x")
        return Request(given["id"], None), SimpleNamespace(model=given.get("model", "tiny"))  # type: ignore[arg-type] # nothing looks

    def pins_of(self, owner: Principal, request: Request, target: Any) -> dict[str, str]:
        return {target.model: f"{target.model}@{len(request.custom_id)}"}

    def policed_error(self, owner: Principal, raw_line: RawLine, message: str, param: str | None) -> dict[str, Any]:
        return {"message": message.replace("secret", "…"), "param": param}


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the validation tells the store: that the batch starts or fails."""
    told: list[Any] = []
    steps = SimpleNamespace(
        fail=lambda db, batch, errors: told.append(("fail", batch.id, errors)),
        start=lambda db, tenant_id, batch_id, **fields: told.append(("start", tenant_id, batch_id, fields)),
    )
    monkeypatch.setattr(batch_validation, "batch_steps", steps)
    return told


def validated(content: bytes, batch: Batch = BATCH, **limits: int) -> int:
    """Validate an input; return the number of pauses."""
    settings = SETTINGS.model_copy(update=limits)
    nothing: Any = None
    return len([*validate(nothing, Contents(content), Reading(), settings, batch)])  # type: ignore[arg-type] # of the test


def inputs(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def test_an_input_without_errors_starts_its_batch(ended: list[Any]) -> None:
    validated(inputs({"id": "a"}, {"id": "bb", "model": "other"}, {"id": "ccc"}))
    fields = {"num_total": 3, "model": "tiny", "model_versions": {"tiny": "tiny@1", "other": "other@2"}}
    assert ended == [("start", "acme", "batch_1", fields)], "the first line with a model decides"


def test_the_errors_of_an_input_are_told_with_their_lines(ended: list[Any]) -> None:
    validated(b"\n" + inputs({"id": "a"}, {"bad": "secret"}, {"id": "a"}))
    assert ended == [
        (
            "fail",
            "batch_1",
            [
                {"code": "invalid_value", "message": "quotes …", "param": "body.x", "line": 3},
                {
                    "code": "duplicate_custom_id",
                    "message": "an earlier line has the same `custom_id`",
                    "param": "custom_id",
                    "line": 4,
                },
            ],
        )
    ]
    ended.clear()
    validated(inputs(*({"id": str(number)} for number in range(5))))
    (failed,) = ended
    assert failed[2] == [{"code": "too_many_lines", "message": "a batch has at most 3 lines", "param": None, "line": 4}]
    ended.clear()
    validated(b" \n")
    assert ended[0][2] == [
        {"code": "empty_file", "message": "the input file has no lines", "param": None, "line": None}
    ]


def test_a_hundred_errors_are_enough_and_the_thread_pauses_between_pieces(ended: list[Any]) -> None:
    pauses = validated(inputs(*({"bad": "x"} for _ in range(300))), max_batch_lines=500)
    assert (pauses, len(ended[0][2])) == (0, 100)
    assert validated(inputs(*({"id": str(number)} for number in range(256))), max_batch_lines=500) == 2
    assert validated(inputs({"id": "a", "x": "y" * (1 << 20)}, {"id": "b"}), max_body_bytes=1 << 21) == 1


def test_bad_lines_of_messages_do_not_stop_their_batch(ended: list[Any]) -> None:
    validated(inputs({"bad": "x"}, {"id": "a"}), replace(BATCH, url=MESSAGES_URL))
    assert (ended[0][0], ended[0][3]["num_total"]) == ("start", 2)


# The results.


def job(id_: str, state: JobState = JobState.SUCCEEDED) -> Any:
    return SimpleNamespace(id=id_, state=state)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Publish a batch whose lines and jobs are given; return how it ends, and the lines of both files."""

    def publish_all(batch: Batch, lines: Sequence[bytes], stored: dict[int, StoredLine], jobs: dict[str, Any]) -> Any:
        told: list[Any] = []
        steps = SimpleNamespace(
            list_lines=lambda db, one, first, last: [stored[n] for n in range(first, last + 1) if n in stored],
            end=lambda db, one, status, files: told.append((status, files)),
        )
        kept: list[Any] = []
        monkeypatch.setattr(batch_results, "batch_steps", steps)
        monkeypatch.setattr(
            batch_results, "jobs", SimpleNamespace(get_many=lambda db, tenant, ids: [jobs[one] for one in ids])
        )
        monkeypatch.setattr(batch_results, "files", SimpleNamespace(keep_content=lambda db, draft: kept.append(draft)))
        monkeypatch.setattr(batch_results, "read_request", lambda line, url, most: SimpleNamespace(wanted=Answering()))
        contents, nothing = Contents(b"\n".join(lines)), None
        for _ in publish(nothing, contents, SETTINGS, batch):  # type: ignore[arg-type] # of the test
            pass
        assert all(draft.is_dropped for draft in contents.written)
        ((status, files),) = told
        assert isinstance(files, ResultFiles)
        drafts: list[Any] = [files.output, files.errors]
        read = [None if one is None else [json.loads(text) for text in one.lines] for one in drafts]
        assert len(kept) == len(contents.written)
        return status, *read

    return publish_all


class Answering:
    """A request whose answer names its job, and fails for the job ``bad``."""

    def answer(self, found: Any) -> dict[str, Any]:
        if found.id == "bad":
            raise InvalidRequest("wrong", param="x")
        if found.id == "broken":
            raise ValueError("secret")
        return {"id": found.id}


def test_each_line_is_in_one_of_the_two_files_in_order(published: Any) -> None:
    refusal = {"status_code": 404, "body": {"error": {"message": "m"}}}
    stored = {
        1: StoredLine(1, "a", "job_1", None),
        2: StoredLine(2, "b", None, refusal),
        3: StoredLine(3, "c", "bad", None),
        4: StoredLine(4, "d", "job_4", None),
        5: StoredLine(5, "e", "job_5", None),
        6: StoredLine(6, "f", "broken", None),
    }
    jobs = {"job_1": job("job_1"), "bad": job("bad"), "broken": job("broken")}
    jobs |= {"job_4": job("job_4", JobState.CANCELLED), "job_5": job("job_5")}
    status, output, errors = published(BATCH, [line(one) for one in "abcdef"], stored, jobs)
    assert status is BatchStatus.COMPLETED
    assert output == [
        {
            "id": f"batch_req_1_{number}",
            "custom_id": custom_id,
            "response": {"status_code": 200, "request_id": job_id, "body": {"id": job_id}},
            "error": None,
        }
        for number, custom_id, job_id in ((1, "a", "job_1"), (5, "e", "job_5"))
    ]
    assert [one["custom_id"] for one in errors] == ["b", "c", "d", "f"]
    refused, failed, cancelled, broken = errors
    assert refused["response"] == {"request_id": "batch_req_1_2", **refusal}
    error = {"message": "wrong", "type": "invalid_request_error", "param": "x", "code": "invalid_value"}
    assert failed["response"] == {"status_code": 400, "request_id": "bad", "body": {"error": error}}
    assert (cancelled["response"], cancelled["error"]) == (
        None,
        {"code": "batch_cancelled", "message": "the batch was cancelled before this request was done"},
    )
    assert broken["response"]["status_code"] == 500


@pytest.mark.parametrize(
    ("batch", "state", "status", "code"),
    [
        (replace(BATCH, finalizing_at=at(100)), None, BatchStatus.EXPIRED, "batch_expired"),
        (replace(BATCH, finalizing_at=None), None, BatchStatus.EXPIRED, "batch_expired"),
        (replace(BATCH, finalizing_at=at(99)), JobState.EXPIRED, BatchStatus.COMPLETED, "batch_expired"),
        (replace(BATCH, finalizing_at=at(101)), JobState.EXPIRED, BatchStatus.EXPIRED, "batch_expired"),
        (replace(BATCH, finalizing_at=at(101)), JobState.CANCELLED, BatchStatus.COMPLETED, "batch_cancelled"),
        (replace(BATCH, status=BatchStatus.CANCELLING), None, BatchStatus.CANCELLED, "batch_cancelled"),
        (replace(BATCH, status=BatchStatus.CANCELLING), JobState.EXPIRED, BatchStatus.CANCELLED, "batch_cancelled"),
    ],
)
def test_a_batch_ends_as_its_lines_did(
    published: Any, batch: Batch, state: JobState | None, status: BatchStatus, code: str
) -> None:
    """Without a state the line was never stored."""
    stored = {} if state is None else {1: StoredLine(1, "a", "job_1", None)}
    jobs = {} if state is None else {"job_1": job("job_1", state)}
    found, output, errors = published(batch, [line()], stored, jobs)
    assert (found, output, [one["error"]["code"] for one in errors]) == (status, None, [code])


def test_a_batch_without_an_input_has_no_files(published: Any) -> None:
    validating = replace(BATCH, status=BatchStatus.VALIDATING, num_total=0, finalizing_at=None)
    assert published(validating, [line()], {}, {}) == (BatchStatus.EXPIRED, None, None)
    assert published(replace(BATCH, input_digest=None), [line()], {}, {}) == (BatchStatus.COMPLETED, None, None)


# The request for a batch.


def asked(**changes: Any) -> BatchRequest:
    given = {"input_file_id": "file_1", "endpoint": URL, "completion_window": "24h"}
    return BatchRequest.model_validate(given | changes)


def origin(**changes: Any) -> Origin:
    given = {"route": "r", "idempotency_key": None, "fingerprint": "f", "is_retry": False, "num_bytes": 1}
    return Origin(**given | changes)


def test_a_request_for_a_batch_is_a_row() -> None:
    trace = TraceContext("1" * 32, "2" * 16, True)
    life = {"anchor": "created_at", "seconds": 7200}
    made = new_batch(
        asked(metadata={"k": "v"}, output_expires_after=life),
        origin(idempotency_key="k", project_id="p", trace=trace),
        "key_1",
        ["f"],
    )
    assert (made.url, made.completion_window, made.window_s, made.metadata) == (URL, "24h", 86_400.0, {"k": "v"})
    assert (made.output_ttl_s, made.fingerprints, made.idempotency_key) == (7200, ["f"], "k")
    assert (made.api_key_id, made.project_id, made.traceparent) == ("key_1", "p", trace.header)
    plain = new_batch(asked(), origin(), "key_1", [])
    assert (plain.metadata, plain.output_ttl_s, plain.idempotency_key, plain.traceparent) == (None, None, None, None)


@pytest.mark.parametrize(
    ("window", "seconds"),
    [("1h", 3600), ("168h", 604_800), ("1d", 86_400), ("7d", 604_800), ("0h", None), ("169h", None), ("8d", None)]
    + [(bad, None) for bad in ("", "24", "h", "24m", "1000h", "24h ", "-1h")],
)
def test_a_window_is_an_hour_to_a_week(window: str, seconds: int | None) -> None:
    if seconds is not None:
        assert new_batch(asked(completion_window=window), origin(), "key_1", []).window_s == seconds
        return
    with pytest.raises(InvalidRequest) as caught:
        new_batch(asked(completion_window=window), origin(), "key_1", [])
    assert (caught.value.message, caught.value.param) == (
        "`completion_window` must be from 1h to 168h, or from 1d to 7d, for example 24h",
        "completion_window",
    )


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_a_batch_has_a_key_within_its_bounds(key: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        new_batch(asked(), origin(idempotency_key=key), "key_1", [])
    assert (caught.value.message, caught.value.param) == (
        "an Idempotency-Key has 1 to 255 characters",
        "Idempotency-Key",
    )


# Batches as they are shown.


def test_a_batch_is_shown_whole() -> None:
    assert batch_object(BATCH).model_dump(mode="json") == {
        "id": "batch_1",
        "object": "batch",
        "endpoint": URL,
        "model": "tiny",
        "model_versions": {"tiny": "tiny@3"},
        "errors": {"object": "list", "data": [{"code": "c", "message": "m", "param": "p", "line": 2}]},
        "input_file_id": "file_1",
        "completion_window": "24h",
        "status": "finalizing",
        "output_file_id": "file_2",
        "error_file_id": "file_3",
        "created_at": 1_800_000_000,
        "in_progress_at": 1_800_000_001,
        "expires_at": 1_800_000_100,
        "finalizing_at": 1_800_000_002,
        "completed_at": 1_800_000_003,
        "failed_at": 1_800_000_004,
        "expired_at": 1_800_000_005,
        "cancelling_at": 1_800_000_006,
        "cancelled_at": 1_800_000_007,
        "request_counts": {"total": 7, "completed": 3, "failed": 2},
        "usage": {"input_tokens": 10, "output_tokens": 20, "total_tokens": 30},
        "metadata": {"k": "v"},
    }
    assert batch_object(replace(BATCH, errors=None)).errors is None
    page = batch_list([BATCH, replace(BATCH, id="batch_2")], 1)
    assert ([one.id for one in page.data], page.first_id, page.last_id, page.has_more) == (
        ["batch_1"],
        "batch_1",
        "batch_1",
        True,
    )
    whole = batch_list([BATCH], 1)
    assert (whole.has_more, batch_list([], 1).model_dump(exclude={"object"})) == (
        False,
        {"data": [], "first_id": None, "last_id": None, "has_more": False},
    )


def test_a_message_batch_is_shown_whole() -> None:
    times = dict.fromkeys(("completed_at", "failed_at", "expired_at", "cancelled_at", "cancelling_at"))
    running = replace(BATCH, status=BatchStatus.IN_PROGRESS, **times)
    shown = message_batch(running, 7, {"failed": 5}).model_dump()
    assert shown == {
        "id": "msgbatch_1",
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": {"processing": 7, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
        "created_at": "2027-01-15T08:00:00Z",
        "expires_at": "2027-01-15T08:01:40Z",
        "ended_at": None,
        "cancel_initiated_at": None,
        "archived_at": None,
        "results_url": None,
    }
    cancelling = message_batch(replace(running, status=BatchStatus.CANCELLING, cancelling_at=at(6)), 7, {})
    assert (cancelling.processing_status, cancelling.cancel_initiated_at) == ("canceling", "2027-01-15T08:00:06Z")
    ended = message_batch(replace(running, status=BatchStatus.COMPLETED, completed_at=at(3)), 7, {})
    assert (ended.processing_status, ended.ended_at) == ("ended", "2027-01-15T08:00:03Z")
    assert ended.results_url == "/v1/messages/batches/msgbatch_1/results"
    for name in ("failed_at", "expired_at", "cancelled_at"):
        status = BatchStatus(name.removesuffix("_at"))
        assert message_batch(replace(running, status=status, **{name: at(9)}), 7, {}).ended_at == "2027-01-15T08:00:09Z"


@pytest.mark.parametrize(
    ("status", "outcomes", "counts"),
    [
        (BatchStatus.COMPLETED, {"failed": 1, "refused": 1, "cancelled": 1, "expired": 1}, (3, 2, 1, 1)),
        (BatchStatus.COMPLETED, {}, (3, 4, 0, 0)),
        (BatchStatus.CANCELLED, {"failed": 1, "refused": 1, "expired": 1}, (3, 2, 2, 0)),
        (BatchStatus.EXPIRED, {"failed": 1, "cancelled": 1, "expired": 9}, (3, 1, 1, 2)),
    ],
)
def test_the_requests_of_an_ended_message_batch_are_counted_once(
    status: BatchStatus, outcomes: dict[str, int], counts: tuple[int, ...]
) -> None:
    found = message_batch(replace(BATCH, status=status), 7, outcomes).request_counts
    assert (found.succeeded, found.errored, found.canceled, found.expired, found.processing) == (*counts, 0)


def test_a_message_batch_has_results_and_ids_of_its_own() -> None:
    assert (message_batch_id("batch_1"), own_id("msgbatch_1"), own_id("batch_1")) == (
        "msgbatch_1",
        "batch_1",
        "batch_1",
    )
    shown = [message_batch(replace(BATCH, id=f"batch_{number}"), 1, {}) for number in range(2)]
    page = message_batch_list(shown, has_more=True)
    assert (page.first_id, page.last_id, page.has_more) == ("msgbatch_0", "msgbatch_1", True)
    assert message_batch_list([], has_more=False).first_id is None
    answer = {"status_code": 200, "request_id": "job_1", "body": {"id": "msg_1"}}
    error = {"message": "m", "type": "invalid_request_error", "param": None, "code": "c"}
    refusal = {"status_code": 404, "request_id": "job_2", "body": {"error": error}}
    lines = [
        {"custom_id": "a", "response": answer, "error": None},
        {"custom_id": "b", "response": refusal, "error": None},
        {"custom_id": "c", "response": None, "error": {"code": "batch_cancelled"}},
        {"custom_id": "d", "response": None, "error": {"code": "batch_expired"}},
    ]
    told = {"type": "error", "error": error | {"type": "not_found_error"}, "request_id": "job_2"}
    assert [message_result(one) for one in lines] == [
        {"custom_id": "a", "result": {"type": "succeeded", "message": {"id": "msg_1"}}},
        {"custom_id": "b", "result": {"type": "errored", "error": told}},
        {"custom_id": "c", "result": {"type": "canceled"}},
        {"custom_id": "d", "result": {"type": "expired"}},
    ]
