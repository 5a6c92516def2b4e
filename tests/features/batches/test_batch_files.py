"""Files of batches without services: how an input is validated, and how results are written."""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.batches import batch_results, batch_validation
from headrace.features.batches.batch_input import LineRefused, RawLine, Request
from headrace.features.batches.batch_results import publish
from headrace.features.batches.batch_steps import ResultFiles, StoredLine
from headrace.features.batches.batch_validation import MESSAGES_URL, validate
from headrace.features.batches.batches import Batch
from headrace.store.errors import InvalidRequest
from headrace.store.schema.batch_states import BatchStatus
from headrace.store.schema.job_states import JobState
from headrace.store.tenants.api_keys import Principal
from tests.features.batches.making import BATCH, PRINCIPAL, SETTINGS, at, line
from tests.refusals import Naming

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
        no_body: Any = None
        return Request(given["id"], no_body), SimpleNamespace(model=given.get("model", "tiny"))

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
    no_database: Any = None
    contents: Any = Contents(content)
    lines: Any = Reading()
    return len([*validate(no_database, contents, lines, settings, batch)])


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
                    "message": Naming("`custom_id`"),
                    "param": "custom_id",
                    "line": 4,
                },
            ],
        )
    ]
    ended.clear()
    validated(inputs(*({"id": str(number)} for number in range(5))))
    (failed,) = ended
    assert failed[2] == [{"code": "too_many_lines", "message": Naming("3 lines"), "param": None, "line": 4}]
    ended.clear()
    validated(b" \n")
    assert ended[0][2] == [{"code": "empty_file", "message": Naming("no lines"), "param": None, "line": None}]


def test_a_custom_id_is_found_again_after_more_lines_than_are_kept_in_memory(ended: list[Any]) -> None:
    names = [*map(str, range(140_000)), "7", "fresh", "139999"]
    validated(inputs(*({"id": name} for name in names)), max_batch_lines=len(names))
    (failed,) = ended
    assert [(error["code"], error["line"]) for error in failed[2]] == [
        ("duplicate_custom_id", 140_001),
        ("duplicate_custom_id", 140_003),
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
        contents: Any = Contents(b"\n".join(lines))
        no_database: Any = None
        for _ in publish(no_database, contents, SETTINGS, batch):
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
        {"code": "batch_cancelled", "message": Naming("cancelled")},
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
