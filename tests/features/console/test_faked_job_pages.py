"""The list of jobs and the page of a job, with made-up answers: their whole text, and the requests that they send."""

from typing import Any

import pytest

from benchmarks.console.chromium import Tab
from tests.features.console.faked_answers import JOB, JOB_ID, LIVE, RUNNING
from tests.features.console.faked_api import (
    NOW,
    asked,
    click,
    enter,
    lines,
    open_faked,
    page_text,
    rows,
    sends,
    sent_body,
    sse,
    toast_says,
)

pytestmark = pytest.mark.timeout(240)

MODELS = {"data": [{"root": "m", "id": "m@3"}, {"root": "m", "id": "m"}, {"root": "n", "id": "n@1"}]}
NO_EVENTS = {"events": [], "attempts": []}
ACCEPTED_AT = NOW - 100
IS_LIVE = "document.querySelector('nav .status').innerText === 'no redis'"
TIMELINE_IS_SHOWN = "document.querySelector('.timeline') !== null"


def test_the_list_of_jobs(tab: Tab) -> None:
    answers = {"GET models": MODELS, "GET jobs": {"data": [RUNNING, JOB], "has_more": True, "last_id": "job_x"}}
    models_are_loaded = "document.querySelectorAll('[name=model] option').length === 3"
    open_faked(
        tab, "jobs?status=failed&age=900&model=m&metadata=a%3Db%3Dc", answers, f"{rows(2)} && {models_are_loaded}"
    )
    assert lines(tab) == page_text("jobs")
    search = "jobs?limit=50&status=failed&model=m&created_after=1795599100&metadata[a]=b=c"
    assert asked(tab) == [["GET", "models", None, None], ["GET", search, None, None]]
    click(tab, "Older →")
    tab.wait("asked.length === 3")
    assert asked(tab)[2][1] == f"{search}&after=job_x"
    tab.wait("document.querySelector('.pages').innerText.includes('Page 2')")
    click(tab, "← Newer")
    tab.wait("document.querySelector('.pages').innerText.includes('Page 1')")
    enter(tab, {"metadata": "wrong"}, "Search")
    assert tab.wait("document.querySelector('[role=alert]')?.innerText") == "metadata is searched as name=value"
    enter(tab, {"metadata": "k=v", "status": "queued"}, "Search")
    tab.wait("location.hash.includes('queued')")
    assert tab.run("location.hash") == "#/jobs?status=queued&model=m&age=900&metadata=k%3Dv"
    enter(tab, {"id": " job_7 "}, "Search")
    tab.wait("location.hash === '#/job/job_7'")


def test_chosen_jobs_are_cancelled_and_replayed(tab: Tab) -> None:
    failed = JOB | {"id": "job_f", "status": "failed", "error": {"code": "poison", "message": "it broke 3 workers"}}
    purged = failed | {"id": "job_p"}
    answers = {
        "GET models": MODELS,
        "GET jobs": {"data": [RUNNING | {"id": "job_r"}, failed, purged], "has_more": False, "last_id": "job_p"},
        "GET jobs/job_f/request": {"body": BODY},
        "GET jobs/job_p/request": {"refused": "the input is no longer kept"},
        "POST jobs": JOB,
        "POST jobs/job_r/cancel": {},
    }
    open_faked(tab, "jobs", answers, rows(3))
    assert lines(tab, "tbody tr:nth-child(2) td:nth-child(3)") == ["failed", "poison", "attempt 2"]
    tab.run("document.querySelector('thead input').click()")
    click(tab, "Cancel 1")
    toast_says(tab, "Cancelled 1 of 1 jobs")
    click(tab, "Replay 2")
    toast_says(tab, "Submitted again 1 of 2 jobs: the input is no longer kept")
    assert [one[1] for one in asked(tab) if one[0] == "POST"] == ["jobs/job_r/cancel", "jobs"]
    assert sent_body(tab, "jobs") == BODY
    tab.run("asked.length = 0; document.querySelector('.head input').click()")
    sends(tab, "GET", "jobs?limit=50")


ENDED_TIMELINE = {
    "attempts": [
        {
            "started_at": ACCEPTED_AT + 10,
            "ended_at": ACCEPTED_AT + 20,
            "outcome": "lease_expired",
            "first_token_ms": None,
        },
        {
            "started_at": ACCEPTED_AT + 25,
            "ended_at": ACCEPTED_AT + 40.5,
            "outcome": "succeeded",
            "first_token_ms": 1500,
        },
    ],
    "events": [
        {"kind": "accepted", "at": ACCEPTED_AT, "detail": {}},
        {
            "kind": "lease_expired",
            "at": ACCEPTED_AT + 20,
            "detail": {"worker": "a@host:7:boot", "engine": "e", "epoch": 1},
        },
        {"kind": "succeeded", "at": ACCEPTED_AT + 40.5, "detail": {}},
    ],
}
DELIVERY = {
    "id": "whd_1",
    "type": "job.succeeded",
    "url": "https://h.example/",
    "tries": [
        {"status": 500, "at": ACCEPTED_AT + 41, "error": None},
        {"status": 204, "at": ACCEPTED_AT + 45, "error": None},
    ],
}
BODY = {
    "model": "m@3",
    "input": {"messages": [{"role": "user", "content": "it's"}, {"role": "tool", "content": [1]}]},
}
BARS = (
    "[...document.querySelectorAll('.timeline i')].map((one) => [one.className.trim(), one.title, "
    "one.style.left, one.style.width])"
)
ENDED_BARS = [
    ["wait", "waited 10 s", "0%", "22.2222%"],
    ["prefill-part", "to the first token 1.0 s", "22.2222%", "2.22222%"],
    ["lost-part", "lost after 9.0 s", "24.4444%", "20%"],
    ["wait", "waited 5.0 s", "44.4444%", "11.1111%"],
    ["prefill-part", "to the first token 1.5 s", "55.5556%", "3.33333%"],
    ["decode-part", "decoded 14 s", "58.8889%", "31.1111%"],
    ["hook bad", "job.succeeded to https://h.example/: 500", "91.1111%", ""],
    ["hook", "job.succeeded to https://h.example/: 204", "100%", ""],
]


def test_a_job_that_has_ended(tab: Tab) -> None:
    answers = {
        f"GET jobs/{JOB_ID}": JOB | {"error": {"code": "x", "message": "why"}},
        f"GET jobs/{JOB_ID}/timeline": ENDED_TIMELINE,
        f"GET jobs/{JOB_ID}/request": {"body": BODY},
        "GET webhook_deliveries": {"data": [{"id": "whd_1"}]},
        "GET webhook_deliveries/whd_1": DELIVERY,
        "POST jobs": JOB | {"id": "job_made"},
    }
    open_faked(tab, f"job/{JOB_ID}", answers, TIMELINE_IS_SHOWN)
    assert lines(tab) == page_text("job_ended")
    assert sorted(one[1] or "" for one in asked(tab)) == [
        f"jobs/{JOB_ID}",
        f"jobs/{JOB_ID}/request",
        f"jobs/{JOB_ID}/timeline",
        "webhook_deliveries/whd_1",
        f"webhook_deliveries?job_id={JOB_ID}&limit=5",
    ]
    assert tab.run(BARS) == ENDED_BARS
    click(tab, "Replay")
    assert sent_body(tab, "jobs") == BODY
    tab.wait("location.hash === '#/job/job_made'")
    toast_says(tab, "Submitted again as job_made")


STEP: dict[str, Any] = {
    "model": "m", "model_version": 3, "task": "generate", "error": None, "usage": None, "attempt": 1,
}  # fmt: skip
STEPS = [
    STEP
    | {"name": "one", "job_id": "job_1", "status": "succeeded", "needs": []}
    | {"usage": {"input_tokens": 5, "output_tokens": 6}},
    STEP | {"name": "two", "job_id": "job_2", "status": "queued", "needs": ["one", "apr_1"], "attempt": 0},
    STEP | {"name": "bad", "job_id": "job_3", "status": "failed", "needs": ["two"], "error": {"code": "oops"}},
]
APPROVAL = {
    "id": "apr_1",
    "job_id": JOB_ID,
    "step": "two",
    "tool": "weather",
    "arguments": '{"a": 1}',
    "expires_at": NOW + 60,
}
STEP_EVENTS = [
    {"kind": "accepted", "at": ACCEPTED_AT, "detail": {}},
    {"kind": "step_started", "at": ACCEPTED_AT + 5, "detail": {"step": "one"}},
    {"kind": "step_finished", "at": ACCEPTED_AT + 10, "detail": {"step": "one", "state": "succeeded"}},
    {"kind": "approval_requested", "at": ACCEPTED_AT + 12, "detail": {"step": "two"}},
]
LANES = (
    "[...document.querySelectorAll('.timeline .lane')].map((lane) => [lane.innerText, "
    "...[...lane.querySelectorAll('i')].map((one) => [one.className.trim(), one.title])])"
)
STEP_LANES = [
    ["one", ["wait", "waited 5.0 s"], ["step-part", "ran 5.0 s"]],
    ["two", ["approval-part open", "waited for an approval 88 s"]],
    ["bad"],
]


def test_a_job_of_steps_that_waits_for_an_approval(tab: Tab) -> None:
    waiting = {"status": "running", "steps": STEPS, "waiting_for": [APPROVAL], "output": None, "usage": None}
    answers = {
        f"GET jobs/{JOB_ID}": JOB | waiting | {"parent_id": None, "cache": None, "truncated": None},
        f"GET jobs/{JOB_ID}/timeline": {"events": STEP_EVENTS, "attempts": []},
        f"GET jobs/{JOB_ID}/events": [
            sse("job.queued", {}, 1),
            sse("job.delta", {"text": "Hel"}, 2),
            sse("job.delta", {"text": "lo"}, 3),
        ],
        f"POST jobs/{JOB_ID}/approvals/apr_1": {},
        f"POST jobs/{JOB_ID}/cancel": {},
    }
    text_has_come = "document.querySelector('[aria-labelledby=answer] pre')?.innerText === 'Hello'"
    open_faked(tab, f"job/{JOB_ID}", answers, text_has_come)
    assert lines(tab) == page_text("job_with_steps")
    assert tab.run(LANES) == STEP_LANES
    click(tab, "Approve")
    assert sent_body(tab, f"jobs/{JOB_ID}/approvals/apr_1") == {"approve": True}
    tab.run("asked.length = 0")
    enter(tab, {"reason": "  "}, "Refuse")
    assert sent_body(tab, f"jobs/{JOB_ID}/approvals/apr_1") == {"approve": False}
    click(tab, "Cancel")
    sends(tab, "POST", f"jobs/{JOB_ID}/cancel")
    toast_says(tab, "The job is being cancelled")


def test_a_job_that_waits(tab: Tab) -> None:
    queued = RUNNING | {"status": "queued", "started_at": None, "parent_id": None, "cache": None, "truncated": None}
    queued |= {"queue": {"name": "m@3", "position": 4, "estimated_start_at": NOW + 61}, "created_at": NOW - 7}
    answers = {
        "GET live": [sse("live", LIVE)],
        f"GET jobs/{JOB_ID}": queued,
        f"GET jobs/{JOB_ID}/timeline": NO_EVENTS,
        f"GET jobs/{JOB_ID}/request": {"refused": "it is no longer kept"},
        f"GET jobs/{JOB_ID}/events": [],
    }
    open_faked(tab, f"job/{JOB_ID}", answers, f"{TIMELINE_IS_SHOWN} && document.querySelector('.note.warn') !== null")
    assert lines(tab) == page_text("job_queued")


def test_a_step_that_waits_for_other_steps(tab: Tab) -> None:
    queued = RUNNING | {"status": "queued", "queue": {"name": "m@3", "position": None, "estimated_start_at": None}}
    answers = {
        "GET live": [sse("live", LIVE)],
        f"GET jobs/{JOB_ID}": queued,
        f"GET jobs/{JOB_ID}/timeline": NO_EVENTS,
        f"GET jobs/{JOB_ID}/request": {"refused": "it is no longer kept"},
        f"GET jobs/{JOB_ID}/events": [],
    }
    open_faked(tab, f"job/{JOB_ID}", answers, f"{TIMELINE_IS_SHOWN} && {IS_LIVE}")
    assert tab.run("[...document.querySelectorAll('main .note')].map((one) => one.innerText)") == [
        "It waits: steps of its job must end before."
    ]
