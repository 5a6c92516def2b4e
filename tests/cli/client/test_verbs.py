"""Each verb of the API: the requests that it sends, to the letter, and the text that it prints."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.cli.client import top
from headrace.client import ApiUnavailable, RequestRefused, ResourceMissing
from headrace.store.errors import Conflict, InvalidRequest, NotFound
from tests.cli.client.api_objects import APPROVAL, BOUND, CHECK, ROLLOUT, TOOL, TWO_DAYS, VERSION
from tests.cli.client.played import Commands, Request, api, headrace
from tests.cli.client.verb_cases import CASES

__all__ = ["api", "headrace"]


def lines_of(told: str) -> list[str]:
    """The lines, without the width of columns, the empty ones at the end included."""
    return [re.sub(r" {2,}", "  ", line.strip()) for line in told.removesuffix("\n").split("\n")]


@pytest.mark.parametrize(("line", "answers", "sent", "told"), CASES, ids=[case[0] for case in CASES])
def test_a_verb_sends_and_tells(
    headrace: Commands, line: str, answers: dict[str, Any], sent: list[Request], told: list[str]
) -> None:
    assert lines_of(headrace(line, answers)) == told
    assert headrace.api.requests == sent
    assert headrace.api.keys == {"Bearer hr_key"}
    assert headrace.code == 0


@pytest.mark.parametrize(
    ("line", "answers", "kind", "said"),
    [
        ("approvals approve apr_9", {"GET /v1/approvals": [APPROVAL]}, NotFound, "no approval apr_9"),
        ("models show tiny", {"GET /v1/model_versions": []}, NotFound, "no model 'tiny'"),
        ("models prompt tiny@1 guide --none", {}, InvalidRequest, "prompt, or --none"),
        ("models prompt tiny@1", {}, InvalidRequest, "prompt, or --none"),
        ("models bound tiny --none --max-kl 1", {}, InvalidRequest, "limits or --none"),
        (
            "models quality tiny@7",
            {"GET /v1/model_versions": [VERSION], "GET /v1/models/tiny/quality_bound": BOUND},
            NotFound,
            "no version 'tiny@7'",
        ),
        (
            "models quantize tiny --scheme int8",
            {
                "GET /v1/model_versions": [
                    VERSION,
                    {**VERSION, "id": "tiny@3", "version": 3, "aliases": [], "dtype": "int8"},
                ]
            },
            Conflict,
            "tiny@3",
        ),
        (
            "pipelines alias digest new 2 --canary 3:100",
            {},
            InvalidRequest,
            "--canary is VERSION:PERCENT",
        ),
        (
            "rollout start digest --pipeline --to 2 --steps 1:1d --sticky job",
            {},
            InvalidRequest,
            "--sticky and no --require-worker",
        ),
        (
            "rollout start digest --pipeline --to 2 --steps 1:1d --require-worker",
            {},
            InvalidRequest,
            "--sticky and no --require-worker",
        ),
        ("rollout show rollout_1 --pipeline digest --plot -", {}, InvalidRequest, "--plot"),
        ("tools delete other", {"GET /v1/tools": [TOOL]}, NotFound, "no tool other"),
        (
            "webhooks recover we_1 --since yesterday",
            {},
            InvalidRequest,
            "--since",
        ),
        ("prompts render guide --var city", {}, InvalidRequest, "'city'"),
        ("prompts render guide --var =x", {}, InvalidRequest, "'=x'"),
        ("prompts render guide --var days:=x", {}, InvalidRequest, "--var days:="),
        ("submit hi --var a=b", {}, InvalidRequest, "--var goes with --prompt"),
        ("submit hi --file x", {}, InvalidRequest, "prompt or --file"),
        ("submit", {}, InvalidRequest, "prompt or --file"),
        ("dead-letters replay job_1 --code poison", {}, InvalidRequest, "--queue and --code"),
        ("submit --job x --temperature 0", {}, InvalidRequest, "with --job"),
        ("submit --job x --webhook https://a", {}, InvalidRequest, "with --job"),
        ("rollout show rollout_1 --plot -", {}, ResourceMissing, "nothing here"),
        ("models quantize tiny --scheme int7", {}, InvalidRequest, "no scheme 'int7': "),
        (
            "submit hi",
            {"GET /v1/models": []},
            InvalidRequest,
            "headrace register",
        ),
        (
            "submit hi",
            {
                "GET /v1/models": [{"id": "a"}, {"id": "b"}, {"id": "c"}],
                "GET /v1/queues": [{"name": "a@1", "workers": 1}, {"name": "b@1", "workers": 2}],
            },
            InvalidRequest,
            "a, b, c",
        ),
        ("webhooks delete we_9", {}, ResourceMissing, "nothing here"),
        (
            "models alias tiny x 2",
            {"PUT /v1/models/tiny/aliases/x": (400, {"error": {"message": "no", "code": "c", "param": "p"}})},
            RequestRefused,
            "no",
        ),
    ],
)
def test_what_a_verb_cannot_do_it_says(
    headrace: Commands, line: str, answers: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind) as raised:
        headrace(line, answers)
    assert said in str(raised.value)
    assert [method for method, *_ in headrace.api.requests if method != "GET"] in ([], ["DELETE"], ["PUT"])


@pytest.mark.parametrize(("expected", "headers"), [(1, {"if-match": '"1"'}), (0, {"if-none-match": "*"})])
def test_an_alias_changes_only_from_the_version_that_is_expected(
    headrace: Commands, expected: int, headers: dict[str, str]
) -> None:
    headrace(f"models alias tiny new 2 --expected {expected}", {"PUT /v1/models/tiny/aliases/new": {}})
    (sent,) = headrace.api.headers
    assert {name: value for name, value in sent.items() if name.startswith("if-")} == headers


def test_a_conditional_change_is_sent_once_and_a_plain_one_again(headrace: Commands) -> None:
    refused = (503, {"error": {"message": "not now", "code": "x", "param": None}})
    with pytest.raises(ApiUnavailable):
        headrace("models alias tiny new 2 --expected 1", {"PUT /v1/models/tiny/aliases/new": refused})
    assert len(headrace.api.requests) == 1
    answers = iter([refused, {}])
    headrace("models alias tiny new 2", {"PUT /v1/models/tiny/aliases/new": lambda: next(answers)})
    assert len(headrace.api.requests) == 2


@pytest.mark.parametrize("state", ["rejected", "retired"])
def test_a_version_out_of_use_does_not_stop_another_in_its_format(headrace: Commands, state: str) -> None:
    before = VERSION | {"id": "tiny@3", "version": 3, "aliases": [], "dtype": "int8", "state": state}
    answers: dict[str, Any] = {"GET /v1/model_versions": [VERSION, before], "POST /v1/models/tiny/versions": VERSION}
    assert headrace("models quantize tiny --scheme int8", answers).startswith("tiny@2 is tiny@2 in int8; ")
    auto = before | {"dtype": "auto", "state": "ready", "verification": {"dtype": "int8"}}
    with pytest.raises(Conflict, match="tiny@3"):
        headrace("models quantize tiny --scheme int8", answers | {"GET /v1/model_versions": [VERSION, auto]})


@pytest.mark.uses("webhooks")
def test_all_pages_of_a_recovery_are_counted(headrace: Commands) -> None:
    pages = iter([{"queued": 3, "has_more": True}, {"queued": 2, "has_more": True}, {"queued": 1, "has_more": False}])
    recover = {"POST /v1/webhook_endpoints/we_1/recover": lambda: next(pages)}
    assert headrace("webhooks recover we_1 --since 2026-11-26", recover).startswith("6 ")
    assert headrace.api.raw_paths == ["/v1/webhook_endpoints/we_1/recover"] * 3


@pytest.mark.parametrize(
    "line",
    [
        *("queues pause a/b", "queues resume a/b", "cancel a/b", "show a/b", "prompts show a/b", "prompts delete a/b"),
        *("prompts alias x a/b 1", "prompts unalias x a/b", "prompts render a/b", "pipelines show a/b"),
        *("pipelines alias x a/b 1", "pipelines unalias x a/b", "pipelines remove a/b", "rollout show a/b"),
        *("rollout pause a/b", "rollout list --pipeline a/b", "webhooks delete a/b", "webhooks delivery a/b"),
        *("webhooks redeliver a/b", "webhooks test a/b", "webhooks enable a/b", "models alias x a/b 1"),
    ],
)
def test_a_name_cannot_reach_another_route(headrace: Commands, line: str) -> None:
    with pytest.raises(ResourceMissing):
        headrace(line, {})
    assert headrace.api.raw_paths[0].count("a%2Fb") == 1


JOB: dict[str, Any] = {
    "id": "job_1",
    "status": "succeeded",
    "queue": {"name": "tiny@1", "position": None},
    "output": {"text": "Water"},
    "usage": {"input_tokens": 5, "output_tokens": 7, "queue_ms": 1, "first_token_ms": None, "compute_ms": None},
    "error": None,
}
ROLLOUTS = {"GET /v1/rollouts/rollout_1": ROLLOUT | {"checks": [CHECK]}}
FAILED = JOB | {"status": "failed", "output": None, "error": {"code": "poison", "message": "it died"}}


def sse(*events: tuple[str, dict[str, Any]]) -> str:
    """A stream of these events. Their ids are 1-1, 1-2 and so on."""
    return "".join(
        f"id: 1-{i}\nevent: {name}\ndata: {json.dumps(data)}\n\n" for i, (name, data) in enumerate(events, 1)
    )


STREAM = sse(
    ("job.queued", {}),
    ("job.delta", {"text": "Wi"}),
    ("job.restarted", {"text": "Wa", "attempt": 2}),
    ("job.delta", {"text": "ter"}),
    ("job.succeeded", JOB),
)


MEASURED = {"quality": None, "not_measured": "too large"}


@pytest.mark.parametrize(
    ("line", "answers", "printed"),
    [
        ("models unalias tiny new", {"DELETE /v1/models/tiny/aliases/new": (204, {})}, {"model": "tiny"}),
        (
            "pipelines unalias digest new",
            {"DELETE /v1/pipelines/digest/aliases/new": (204, {})},
            {"pipeline": "digest"},
        ),
        ("prompts unalias guide new", {"DELETE /v1/prompts/guide/aliases/new": (204, {})}, {"prompt": "guide"}),
    ],
)
def test_a_removed_alias_is_printed_as_json(
    headrace: Commands, line: str, answers: dict[str, Any], printed: dict[str, Any]
) -> None:
    assert json.loads(headrace(f"{line} --json", answers)) == printed | {"alias": "new", "removed": True}


@pytest.mark.parametrize(
    ("line", "answers", "printed"),
    [
        ("webhooks delete we_1", {"DELETE /v1/webhook_endpoints/we_1": (204, {})}, {"id": "we_1", "deleted": True}),
        (
            "webhooks recover we_1 --since 2026-11-26",
            {"POST /v1/webhook_endpoints/we_1/recover": {"queued": 4, "has_more": False}},
            {"queued": 4},
        ),
        (
            "tools delete weather",
            {"GET /v1/tools": [TOOL], "DELETE /v1/tools/tool_1": (204, {})},
            {"name": "weather", "deleted": True},
        ),
        ("queues pause q@1", {"POST /v1/queues/q@1/pause": {"name": "q@1"}}, {"name": "q@1"}),
        (
            "models quality tiny@2",
            {
                "GET /v1/model_versions": [VERSION | {"verification": MEASURED, "quantized_from": "tiny@1"}],
                "GET /v1/models/tiny/quality_bound": BOUND,
            },
            {
                "data": [
                    {
                        "id": "tiny@2",
                        "state": "ready",
                        "state_reason": None,
                        "dtype": "auto",
                        "quantized_from": "tiny@1",
                        **MEASURED,
                    }
                ],
                "bound": BOUND,
            },
        ),
    ],
)
def test_a_verb_tells_json(headrace: Commands, line: str, answers: dict[str, Any], printed: dict[str, Any]) -> None:
    assert json.loads(headrace(f"{line} --json", answers)) == printed


def test_live_figures_are_lines_until_the_api_refuses(headrace: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(top, "time", SimpleNamespace(sleep=slept.append))
    away = (503, {"error": {"message": "not now", "code": "x", "param": None}})
    forbidden = (403, {"error": {"message": "no scope", "code": "y", "param": None}})
    events = sse(("history", {"points": []}), ("live", {"at": 1}))
    answers = iter([events, away, away, sse(("live", {"at": 2})), *[away] * 5, forbidden])
    with pytest.raises(RequestRefused, match="no scope"):
        headrace("top --json", {"GET /v1/live": lambda: next(answers)})
    out, told = headrace.rest()
    assert [json.loads(line) for line in out.splitlines()] == [
        {"event": "history", "data": {"points": []}},
        {"event": "live", "data": {"at": 1}},
        {"event": "live", "data": {"at": 2}},
    ]
    assert slept == [0.5, 1.0, 2.0, 0.5, 1.0, 2.0, 5.0, 5.0, 5.0], "longer while it fails, at once again after events"
    ended, away_told = "has ended the connection; it is tried again", "! not now; it is tried again"
    lines = told.splitlines()
    assert [line.endswith(ended) for line in lines] == [True, False, False, True, *[False] * 5]
    assert set(lines[1:3]) == set(lines[4:]) == {away_told}


def test_a_stream_is_printed_as_it_comes(headrace: Commands) -> None:
    answers = {"POST /v1/jobs": {"id": "job_1", "status": "queued"}, "GET /v1/jobs/job_1/events": STREAM}
    assert headrace("submit hi --model tiny --stream", answers) == "Wi\nWater\n"
    accepted, lost, ended = headrace.err.splitlines()
    assert ("headrace watch job_1" in accepted, lost[0], ended) == (True, "!", "job_1 succeeded, 5 + 7 tokens")
    lines = [json.loads(line) for line in headrace("watch job_1 --json", answers).splitlines()]
    assert [(line["id"], line["event"]) for line in lines] == [
        ("1-1", "job.queued"),
        ("1-2", "job.delta"),
        ("1-3", "job.restarted"),
        ("1-4", "job.delta"),
        ("1-5", "job.succeeded"),
    ]
    assert (lines[3]["data"], lines[4]["data"], headrace.err, headrace.code) == ({"text": "ter"}, JOB, "", 0)


def test_an_answer_is_waited_for_and_a_failed_job_is_exit_1(headrace: Commands) -> None:
    answers: dict[str, Any] = {"POST /v1/jobs": {"id": "job_1", "status": "queued"}, "GET /v1/jobs/job_1": JOB}
    assert headrace("submit hi --model tiny --wait", answers) == "Water\n"
    assert headrace.err.splitlines()[1:] == ["job_1 succeeded, 5 + 7 tokens"]
    assert json.loads(headrace("submit hi --model tiny --wait --json", answers)) == JOB
    assert len(headrace.err.splitlines()) == 1
    answers |= {"GET /v1/jobs/job_1": FAILED, "GET /v1/jobs/job_1/events": sse(("job.failed", FAILED))}
    assert headrace("submit hi --model tiny --wait", answers) == ""
    assert (headrace.code, headrace.err.splitlines()[1:]) == (1, ["job_1 failed, 5 + 7 tokens, poison: it died"])
    cancelled = JOB | {"status": "cancelled"}
    answers["GET /v1/jobs/job_1"] = cancelled
    assert json.loads(headrace("submit hi --model tiny --wait --json", answers)) == cancelled
    assert headrace.code == 1
    assert headrace("watch job_1", answers) == "\n"
    assert (headrace.code, headrace.err.splitlines()) == (1, ["job_1 failed, 5 + 7 tokens, poison: it died"])


def test_a_whole_body_is_sent_as_the_file_has_it(headrace: Commands, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text('{"model": "tiny", "input": {"prompt": "hi"}}')
    accepted = {"POST /v1/jobs": {"id": "job_1", "status": "queued"}}
    headrace(f"submit --job {file}", accepted)
    assert headrace.api.requests == [("POST", "/v1/jobs", {"model": "tiny", "input": {"prompt": "hi"}})]
    for bad, said in (("[]", "the body"), ("{}", "the body"), ("{", "no JSON")):
        file.write_text(bad)
        with pytest.raises(InvalidRequest, match=said):
            headrace(f"submit --job {file}", accepted)
    file.write_text('{"idempotency_key": "k"}')
    with pytest.raises(InvalidRequest, match="the body"):
        headrace(f"submit --job {file}", accepted)
    file.write_text("How?")
    headrace(f"submit --file {file} --model tiny --prompt guide@2", accepted)
    assert headrace.api.requests[0][2]["input"] == {
        "template": {"id": "guide@2", "variables": {}},
        "messages": [{"role": "user", "content": "How?"}],
    }


SHOWN: dict[str, Any] = JOB | {
    "model": "tiny",
    "model_version": 1,
    "created_at": TWO_DAYS,
    "started_at": None,
    "completed_at": None,
    "attempt": 0,
    "max_attempts": 3,
    "purged_at": None,
    "template": None,
    "waiting_for": [{"id": "apr_1", "tool": "weather", "arguments": "{}"}],
    "steps": [{"name": "one", "status": "running", "model": "big", "model_version": 2}],
}


def test_a_job_is_shown_with_its_timeline_and_answer(headrace: Commands) -> None:
    timeline = {"events": [{"kind": "queued", "at": TWO_DAYS, "detail": {}}], "attempts": []}
    answers: dict[str, Any] = {
        "GET /v1/jobs/job_1": SHOWN,
        "GET /v1/jobs/job_1/timeline": timeline,
        "GET /v1/webhook_deliveries": (403, {"error": {"message": "no", "code": "x", "param": None}}),
    }
    told = lines_of(headrace("show job_1", answers))
    assert told[:6] == [
        "job  job_1 succeeded",
        "model  tiny@1",
        "created  2 d ago",
        "tokens  5 + 7",
        "waits for  an approval of weather {}: headrace approvals approve apr_1",
        "step  one running big@2",
    ]
    assert told[-2:] == ["", "Water"]
    assert headrace.api.requests[1:] == [
        ("GET", "/v1/jobs/job_1/timeline", None),
        ("GET", "/v1/webhook_deliveries?job_id=job_1&limit=5", None),
    ]
    assert json.loads(headrace("show job_1 --json", answers)) == SHOWN
    assert len(headrace.api.requests) == 1
