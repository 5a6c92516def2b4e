"""Each page of the console, with made-up answers of the API: its whole text, and the requests that it sends."""

import json
from typing import Any

import pytest

from benchmarks.console.chromium import Tab
from tests.producer_api.console.faked import NOW, asked, click, enter, lines, open_faked, sends, sse

pytestmark = pytest.mark.timeout(240)

JOB_ID = "job_0197f0c2a3b47d518e9a2b6c7d8e9f01"
JOB: dict[str, Any] = {
    "id": JOB_ID, "status": "succeeded", "model": "m", "model_version": 3, "task": "generate",
    "service_class": "batch", "priority": 4, "created_at": NOW - 100, "started_at": NOW - 90,
    "expires_at": NOW + 3600, "attempt": 2, "max_attempts": 3,
    "usage": {
        "queue_ms": 10_000, "compute_ms": 5_000, "first_token_ms": 11_000, "input_tokens": 12_345,
        "output_tokens": 21, "cached_tokens": 7, "cost": 0.00123456,
    },
    "metadata": {"a": "b"}, "error": None, "waiting_for": None, "steps": None, "parent_id": "job_parent",
    "cache": "miss", "truncated": {"tokens": 5, "turns": 1}, "queue": None,
    "output": {"text": "Hi", "finish_reason": "stop", "tool_calls": [{"id": "c"}]}, "purged_at": None,
}  # fmt: skip
RUNNING = JOB | {"status": "running", "usage": None, "attempt": 1, "output": None, "metadata": {}}
MODELS = {"data": [{"root": "m", "id": "m@3"}, {"root": "m", "id": "m"}, {"root": "n", "id": "n@1"}]}
NO_EVENTS = {"events": [], "attempts": []}


def test_the_list_of_jobs(tab: Tab) -> None:
    answers = {"GET models": MODELS, "GET jobs": {"data": [RUNNING, JOB], "has_more": True, "last_id": "job_x"}}
    two_rows = (
        "document.querySelectorAll('tbody tr').length === 2 && document.querySelectorAll('[name=model] "
        "option').length === 3"
    )
    open_faked(tab, "jobs?status=failed&age=900&model=m&metadata=a%3Db%3Dc", answers, two_rows)
    assert lines(tab) == [
        "Jobs",
        "Refresh",
        "State",
        "any",
        "queued",
        "running",
        "succeeded",
        "failed",
        "cancelled",
        "expired",
        "Model",
        "any",
        "m",
        "n",
        "Accepted in the last",
        "any time",
        "15 minutes",
        "hour",
        "day",
        "week",
        "Metadata",
        "Job id",
        "Search",
        "Job State Model Class Accepted Waited Took Tokens in Out",
        "job_…7d8e9f01 running m@3",
        "generate",
        "batch 1 min 40 s ago 10 s – – –",
        "job_…7d8e9f01",
        "a=b",
        "succeeded",
        "attempt 2",
        "m@3",
        "generate",
        "batch 1 min 40 s ago 10 s 5.0 s 12.3K 21",
        "← Newer",
        "Page 1",
        "Older →",
    ]
    assert asked(tab) == [
        ["GET", "models", None, None],
        ["GET", "jobs?limit=50&status=failed&model=m&created_after=1795599100&metadata[a]=b=c", None, None],
    ]
    click(tab, "Older →")
    tab.wait("asked.length === 3")
    assert (
        asked(tab)[2][1] == "jobs?limit=50&status=failed&model=m&created_after=1795599100&metadata[a]=b=c&after=job_x"
    )
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


def test_a_job_that_has_ended(tab: Tab) -> None:
    at = NOW - 100
    timeline = {
        "attempts": [
            {"started_at": at + 10, "ended_at": at + 20, "outcome": "lease_expired", "first_token_ms": None},
            {"started_at": at + 25, "ended_at": at + 40.5, "outcome": "succeeded", "first_token_ms": 1500},
        ],
        "events": [
            {"kind": "accepted", "at": at, "detail": {}},
            {"kind": "lease_expired", "at": at + 20, "detail": {"worker": "a@host:7:boot", "engine": "e", "epoch": 1}},
            {"kind": "succeeded", "at": at + 40.5, "detail": {}},
        ],
    }
    tries = [{"status": 500, "at": at + 41, "error": None}, {"status": 204, "at": at + 45, "error": None}]
    hook = {"id": "whd_1", "type": "job.succeeded", "url": "https://h.example/", "tries": tries}
    body = {
        "model": "m@3",
        "input": {"messages": [{"role": "user", "content": "it's"}, {"role": "tool", "content": [1]}]},
    }
    failed = JOB | {"error": {"code": "x", "message": "why"}}
    answers = {
        f"GET jobs/{JOB_ID}": failed,
        f"GET jobs/{JOB_ID}/timeline": timeline,
        f"GET jobs/{JOB_ID}/request": {"body": body},
        "GET webhook_deliveries": {"data": [{"id": "whd_1"}]},
        "GET webhook_deliveries/whd_1": hook,
        "POST jobs": JOB | {"id": "job_made"},
    }
    open_faked(tab, f"job/{JOB_ID}", answers, "document.querySelector('.timeline') !== null")
    assert lines(tab) == [
        "Job job_…7d8e9f01",
        "succeeded",
        "Copy curl",
        "Copy Python",
        "Copy Node",
        "Replay",
        "x: why",
        "Timeline",
        "Attempt 1",
        "Attempt 2",
        "Webhooks",
        "09:45:00.000",
        "45 s",
        "09:45:45.000",
        "waited",
        "prefill, to the first token",
        "decode",
        "ran, and was lost with its worker",
        "Id",
        "job_0197f0c2a3b47d518e9a2b6c7d8e9f01",
        "Step of",
        "job_parent",
        "Model",
        "m@3",
        "Task",
        "generate",
        "Class, priority",
        "batch, 4",
        "Accepted",
        "2026-11-25 09:45:00",
        "Deadline",
        "2026-11-25 10:46:40",
        "Charged attempts",
        "2 of 3",
        "Last attempt began after",
        "10 s",
        "First token after",
        "11 s",
        "Computed",
        "5.0 s",
        "Tokens in, out",
        "12.3K (7 cached), 21",
        "Tokens per second",
        "5.0",
        "Cost",
        "0.00123",
        "Response cache",
        "miss",
        "Left out of the input",
        "5 tokens, 1 turns",
        "metadata a",
        "b",
        "Request",
        "user",
        "it's",
        "tool",
        "[",
        "1",
        "]",
        "The whole body",
        "Answer",
        "ended by stop",
        "Hi",
        "[",
        "{",
        '"id": "c"',
        "}",
        "]",
        "Events",
        "Time After Event Detail",
        "09:45:00.000 0 ms accepted",
        "09:45:20.000 20 s lease expired host · 7, e, epoch 1",
        "09:45:40.500 41 s succeeded",
    ]
    assert sorted(one[1] or "" for one in asked(tab)) == [
        "jobs/job_0197f0c2a3b47d518e9a2b6c7d8e9f01",
        "jobs/job_0197f0c2a3b47d518e9a2b6c7d8e9f01/request",
        "jobs/job_0197f0c2a3b47d518e9a2b6c7d8e9f01/timeline",
        "webhook_deliveries/whd_1",
        "webhook_deliveries?job_id=job_0197f0c2a3b47d518e9a2b6c7d8e9f01&limit=5",
    ]
    bars = (
        "[...document.querySelectorAll('.timeline i')].map((one) => [one.className.trim(), one.title, "
        "one.style.left, one.style.width])"
    )
    assert tab.run(bars) == [
        ["wait", "waited 10 s", "0%", "22.2222%"],
        ["prefill-part", "to the first token 1.0 s", "22.2222%", "2.22222%"],
        ["lost-part", "lost after 9.0 s", "24.4444%", "20%"],
        ["wait", "waited 5.0 s", "44.4444%", "11.1111%"],
        ["prefill-part", "to the first token 1.5 s", "55.5556%", "3.33333%"],
        ["decode-part", "decoded 14 s", "58.8889%", "31.1111%"],
        ["hook bad", "job.succeeded to https://h.example/: 500", "91.1111%", ""],
        ["hook", "job.succeeded to https://h.example/: 204", "100%", ""],
    ]
    click(tab, "Replay")
    assert json.loads(sends(tab, "POST", "jobs")[2] or "") == body
    tab.wait("location.hash === '#/job/job_made'")
    assert tab.wait("document.querySelector('.toast').innerText") == "Submitted again as job_made"


def test_a_job_of_steps_that_waits_for_an_approval(tab: Tab) -> None:
    step = {"model": "m", "model_version": 3, "task": "generate", "error": None, "usage": None, "attempt": 1}
    steps = [
        {
            **step,
            "name": "one",
            "job_id": "job_1",
            "status": "succeeded",
            "needs": [],
            "usage": {"input_tokens": 5, "output_tokens": 6},
        },
        {**step, "name": "two", "job_id": "job_2", "status": "queued", "needs": ["one", "apr_1"], "attempt": 0},
        {**step, "name": "bad", "job_id": "job_3", "status": "failed", "needs": ["two"], "error": {"code": "oops"}},
    ]
    waiting = {
        "id": "apr_1",
        "job_id": JOB_ID,
        "step": "two",
        "tool": "weather",
        "arguments": '{"a": 1}',
        "expires_at": NOW + 60,
    }
    at = NOW - 100
    events = [
        {"kind": "accepted", "at": at, "detail": {}},
        {"kind": "step_started", "at": at + 5, "detail": {"step": "one"}},
        {"kind": "step_finished", "at": at + 10, "detail": {"step": "one", "state": "succeeded"}},
        {"kind": "approval_requested", "at": at + 12, "detail": {"step": "two"}},
    ]
    job = JOB | {
        "status": "running",
        "steps": steps,
        "waiting_for": [waiting],
        "parent_id": None,
        "output": None,
        "cache": None,
    }
    job |= {"truncated": None, "usage": None}
    answers = {
        f"GET jobs/{JOB_ID}": job,
        f"GET jobs/{JOB_ID}/timeline": {"events": events, "attempts": []},
        f"GET jobs/{JOB_ID}/events": [
            sse("job.queued", {}, 1),
            sse("job.delta", {"text": "Hel"}, 2),
            sse("job.delta", {"text": "lo"}, 3),
        ],
        f"POST jobs/{JOB_ID}/approvals/apr_1": {},
        f"POST jobs/{JOB_ID}/cancel": {},
    }
    open_faked(
        tab, f"job/{JOB_ID}", answers, "document.querySelector('[aria-labelledby=answer] pre')?.innerText === 'Hello'"
    )
    assert lines(tab) == [
        "Job job_…7d8e9f01",
        "running",
        "Cancel",
        "Waits for approval",
        "weather two, refused if not approved by 2026-11-25 09:47:40",
        '{"a": 1}',
        "Approve",
        "Refuse",
        "Reason of a refusal, for the model",
        "Timeline",
        "one",
        "two",
        "bad",
        "09:45:00.000",
        "1 min 40 s",
        "09:46:40.000",
        "waited",
        "waited for an approval",
        "the step ran",
        "Steps",
        "Step State Model Task Needs Attempts Tokens in, out",
        "one succeeded m@3 generate – 1 5, 6",
        "two queued m@3 generate one, apr_1 0 –",
        "bad failed oops m@3 generate two 1 –",
        "Id",
        "job_0197f0c2a3b47d518e9a2b6c7d8e9f01",
        "Steps",
        "1 of 3 succeeded",
        "Class, priority",
        "batch, 4",
        "Accepted",
        "2026-11-25 09:45:00",
        "Deadline",
        "2026-11-25 10:46:40",
        "Waited",
        "–",
        "First token after",
        "–",
        "Computed",
        "–",
        "Tokens in, out",
        "–",
        "Tokens per second",
        "–",
        "Cost",
        "no price",
        "metadata a",
        "b",
        "Request",
        "no answer for jobs/job_0197f0c2a3b47d518e9a2b6c7d8e9f01/request",
        "Answer",
        "Hello",
        "Events",
        "Time After Event Detail",
        "09:45:00.000 0 ms accepted",
        '09:45:05.000 5.0 s step started step "one"',
        '09:45:10.000 10 s step finished step "one", state "succeeded"',
        '09:45:12.000 12 s approval requested step "two"',
    ]
    bars = (
        "[...document.querySelectorAll('.timeline .lane')].map((lane) => [lane.innerText, "
        "...[...lane.querySelectorAll('i')].map((one) => [one.className.trim(), one.title])])"
    )
    assert tab.run(bars) == [
        ["one", ["wait", "waited 5.0 s"], ["step-part", "ran 5.0 s"]],
        ["two", ["approval-part open", "waited for an approval 88 s"]],
        ["bad"],
    ]
    click(tab, "Approve")
    assert json.loads(sends(tab, "POST", f"jobs/{JOB_ID}/approvals/apr_1")[2] or "") == {"approve": True}
    tab.run("asked.length = 0")
    enter(tab, {"reason": "  "}, "Refuse")
    assert json.loads(sends(tab, "POST", f"jobs/{JOB_ID}/approvals/apr_1")[2] or "") == {"approve": False}
    click(tab, "Cancel")
    sends(tab, "POST", f"jobs/{JOB_ID}/cancel")
    tab.wait("document.querySelector('.toast').innerText === 'The job is being cancelled'")


def test_a_job_that_waits(tab: Tab) -> None:
    queued = RUNNING | {"status": "queued", "started_at": None, "parent_id": None, "cache": None, "truncated": None}
    queued |= {"queue": {"position": 4, "estimated_start_at": NOW + 61}, "created_at": NOW - 7}
    answers = {
        f"GET jobs/{JOB_ID}": queued,
        f"GET jobs/{JOB_ID}/timeline": NO_EVENTS,
        f"GET jobs/{JOB_ID}/request": {"refused": "it is no longer kept"},
        f"GET jobs/{JOB_ID}/events": [],
    }
    open_faked(tab, f"job/{JOB_ID}", answers, "document.querySelector('.timeline') !== null")
    assert lines(tab) == [
        "Job job_…7d8e9f01",
        "queued",
        "Cancel",
        "Timeline",
        "Waiting",
        "09:46:33.000",
        "7.0 s",
        "09:46:40.000",
        "waited",
        "Id",
        "job_0197f0c2a3b47d518e9a2b6c7d8e9f01",
        "Model",
        "m@3",
        "Task",
        "generate",
        "Class, priority",
        "batch, 4",
        "Accepted",
        "2026-11-25 09:46:33",
        "Deadline",
        "2026-11-25 10:46:40",
        "Charged attempts",
        "1 of 3",
        "Waited",
        "so far 7.0 s",
        "First token after",
        "–",
        "Computed",
        "–",
        "Tokens in, out",
        "–",
        "Tokens per second",
        "–",
        "Cost",
        "no price",
        "Place in the queue",
        "4, starts about 09:47:41",
        "Request",
        "it is no longer kept",
        "Answer",
        "None yet.",
        "Events",
        "Time After Event Detail",
    ]
    tab.problems.clear()


LOAD = {"jobs": 3, "tokens": 12_000}
QUEUE: dict[str, Any] = {
    "name": "m@3", "paused_at": None, "workers": 2, "running": 4, "host": None,
    "scaling": {"workers": 3, "reason": "it is late"},
    "queued": LOAD, "by_class": {"interactive": {"jobs": 1}, "standard": {"jobs": 2}, "batch": {"jobs": 0}},
    "oldest_age_s": 61.0, "rate": {"tokens_per_s": 1234.5}, "clears_in_s": 9.7,
    "tenants": [{"id": "ten_1", "name": "acme", "jobs": 2}, {"id": "ten_2", "name": None, "jobs": 1}],
}  # fmt: skip
EMPTY = {"jobs": 0, "tokens": 0}
IDLE = QUEUE | {
    "queued": EMPTY,
    "by_class": dict.fromkeys(("interactive", "standard", "batch"), EMPTY),
    "tenants": [],
    "rate": None,
}
QUEUES = [
    QUEUE,
    IDLE | {"name": "a@1", "paused_at": 5, "clears_in_s": None, "scaling": None},
    IDLE | {"name": "b@1", "workers": 0, "scaling": None},
    QUEUE | {"name": "c@1", "workers": 0, "clears_in_s": None, "scaling": None},
    IDLE | {"name": "d@1", "workers": 0, "host": {"loads_in_s": 0.2, "reason": None}},
    IDLE | {"name": "e@1", "workers": 0, "host": {"loads_in_s": None, "reason": "too large"}},
    IDLE | {"name": "f@1", "workers": 1, "scaling": None},
]
HELD = {
    "id": JOB_ID,
    "class_rank": 1,
    "attempt": 2,
    "age_s": 2.5,
    "input_tokens": 9,
    "output_tokens": 5,
    "max_tokens": 20,
}
WORKER: dict[str, Any] = {
    "id": "celery@mill:7:boot", "queue": "m@3", "engine": "own", "health": "late", "seen_age_s": 6.0, "slots": 3,
    "running": 1, "waiting": 2, "free_blocks": 10, "total_blocks": 40, "lease_s": 10,
    "lease_age_s": 8.0, "is_reserved": True,
    "jobs": [HELD, HELD | {"id": "job_b", "output_tokens": 0, "attempt": 1, "class_rank": 0}],
}  # fmt: skip
HOST = {
    "name": "h1", "num_swaps": 2, "needed_bytes": 2**30, "budget_bytes": 3 * 2**30, "used_bytes": 2**29,
    "places": [{"queue": "m@3", "state": "serving"}, {"queue": "n@1", "state": "loading"}], "asleep": ["s@1"],
    "events": [{"at": NOW - number, "queue": f"q{number}", "kind": "loaded", "reason": "asked"} for number in range(6)],
}  # fmt: skip
LIVE: dict[str, Any] = {
    "at": NOW, "share": "all", "missing": ["redis"], "queues": QUEUES, "hosts": [HOST], "cache_hit_rate": 0.256,
    "workers": [WORKER, WORKER | {"id": "w2", "health": "lost", "jobs": [HELD], "is_reserved": False, "waiting": 0}],
    "problems": [
        {"kind": "not_taken", "queue": "m@3", "worker": None, "text": "Nobody takes it."},
        {"kind": "worker_late", "queue": "m@3", "worker": "w", "text": "It is late."},
    ],
}  # fmt: skip
POINT = {"tokens_per_s": 10, "first_token_p50_ms": 5.0, "first_token_p95_ms": 5.0, "occupancy": 0.1}
LAST = {"tokens_per_s": 123.4, "first_token_p50_ms": 80.0, "first_token_p95_ms": 950.0, "occupancy": 0.5}
HISTORY = {
    "points": [{"at": NOW - 5, **POINT}, {"at": NOW, **LAST}],
    "speeds": [{"queue": "m@3", "tokens_per_s": 55.5, "first_token_p50_ms": 70.0, "first_token_p95_ms": 900.0}],
}


def test_the_live_page(tab: Tab) -> None:
    answers = {
        "GET live": [sse("history", HISTORY), sse("live", LIVE)],
        "POST queues/m@3/pause": {},
        "POST queues/a@1/resume": {},
    }
    open_faked(tab, "live", answers, "document.querySelectorAll('.worker').length === 2")
    assert lines(tab) == [
        "Live",
        "The API cannot read redis.",
        "not taken Nobody takes it.",
        "worker late It is late.",
        "Tokens per second",
        "123",
        "First token",
        "p50",
        "p95",
        "80 ms 0.95 s",
        "Occupancy",
        "50 %",
        "Waiting jobs",
        "6 28 running",
        "interactive",
        "2",
        "standard",
        "4",
        "batch",
        "0",
        "Response cache: 26 % hits since this API process started.",
        "Queues",
        "interactive",
        "standard",
        "batch",
        "Queue Waiting Jobs Tokens Oldest Rate Clears in Most from",
        "Actions",
        "m@3",
        "2 workers, 4 running",
        "3 wanted: it is late",
        "3 12K 61 s 1,235 tok/s 9.7 s acme 2 · ten_2 1 Pause",
        "a@1",
        "paused",
        "0 0 – – – – Resume",
        "b@1",
        "no worker",
        "0 0 – – – – Pause",
        "c@1",
        "no worker",
        "3 12K 61 s 1,235 tok/s not known acme 2 · ten_2 1 Pause",
        "d@1",
        "loads in about 1 s",
        "0 0 – – – – Pause",
        "e@1",
        "no place",
        "0 0 – – – – Pause",
        "f@1",
        "1 worker, 4 running",
        "0 0 – – – – Pause",
        "Model hosts",
        "Host Versions with a place, or asleep Memory Last events",
        "h1",
        "2 swaps",
        "m@3 serving",
        "n@1 loading",
        "s@1 asleep",
        "1.0 of 3.0 GiB",
        "0.5 in use",
        "09:46:40 q0 loaded: asked",
        "09:46:39 q1 loaded: asked",
        "09:46:38 q2 loaded: asked",
        "09:46:37 q3 loaded: asked",
        "09:46:36 q4 loaded: asked",
        "Workers",
        "2 jobs in 1",
        "interactive",
        "standard",
        "batch",
        "free slot",
        "m@3",
        "late",
        "mill · 7",
        "2 of 3 slots",
        "takes no others now",
        "2 wait inside",
        "KV 75 %",
        "lease 8.0 s of 10 s",
        "heartbeat 6.0 s",
        "own",
        "m@3",
        "lost",
        "w2",
        "1 of 3 slots",
        "KV 75 %",
        "lease 8.0 s of 10 s",
        "heartbeat 6.0 s",
        "own",
    ]
    assert lines(tab, "nav.side .status") == ["no redis"]
    assert tab.run("[...document.querySelectorAll('.worker .late')].map((one) => one.innerText)") == [
        *["lease 8.0 s of 10 s", "heartbeat 6.0 s"] * 2
    ]
    cells = (
        "[...document.querySelectorAll('.cells li > *')].map((one) => [one.className.trim(), one.title, "
        "one.tabIndex, one.firstElementChild?.style.transform])"
    )
    assert tab.run(cells) == [
        ["cell c1  again", "standard job job_…7d8e9f01, 5 of 20 tokens, 2.5 s, attempt 2", 0, "scaleY(0.25)"],
        ["cell c0 prefill", "interactive job job_b, reads 9 tokens, 2.5 s", -1, "scaleY(0)"],
        ["cell idle", "", -1, None],
        ["cell c1  again", "standard job job_…7d8e9f01, 5 of 20 tokens, 2.5 s, attempt 2", 0, "scaleY(0.25)"],
        ["cell idle", "", -1, None],
        ["cell idle", "", -1, None],
    ]
    kinds = "[...document.querySelectorAll('main .badge')].map((one) => `${one.innerText}: ${one.className}`)"
    assert tab.run(kinds) == [
        "not taken: badge bad",
        "worker late: badge warn",
        "paused: badge warn",
        "no worker: badge ",
        "no worker: badge bad",
        "loads in about 1 s: badge",
        "no place: badge bad",
        "serving: badge good",
        "loading: badge warn",
        "asleep: badge ",
        "late: badge warn",
        "lost: badge bad",
    ]
    splits = (
        "[...document.querySelectorAll('main .split')].map((one) => [...one.children].map((part) => "
        "`${part.className} ${part.style.width}`))"
    )
    assert tab.run(splits) == [
        ["c0 50%"],
        ["c1 100%"],
        ["c2 0%"],
        ["c0 33.3333%", "c1 66.6667%"],
        [],
        [],
        ["c0 33.3333%", "c1 66.6667%"],
        [],
        [],
        [],
    ]
    click(tab, "Pause")
    assert sends(tab, "POST", "queues/m@3/pause")[2] == "{}"
    tab.wait("document.querySelector('.toast').innerText === 'm@3 is paused'")
    click(tab, "Resume")
    sends(tab, "POST", "queues/a@1/resume")


def test_the_live_page_of_a_tenant(tab: Tab) -> None:
    own = LIVE | {
        "share": "own",
        "missing": [],
        "queues": QUEUES[:1],
        "hosts": [],
        "problems": [],
        "cache_hit_rate": None,
    }
    own["workers"] = [
        WORKER
        | {"health": "ok", "total_blocks": None, "engine": None, "waiting": None, "lease_age_s": None, "jobs": []}
    ]
    open_faked(tab, "live", {"GET live": [sse("live", own)]}, "document.querySelectorAll('.worker').length === 1")
    assert lines(tab) == [
        "Live",
        "your tenant only",
        "Tokens per second",
        "–",
        "First token",
        "p50",
        "p95",
        "– –",
        "Occupancy",
        "–",
        "Waiting jobs",
        "3 4 running",
        "interactive",
        "1",
        "standard",
        "2",
        "batch",
        "0",
        "Queues",
        "interactive",
        "standard",
        "batch",
        "Queue Waiting Jobs Tokens Oldest Rate Clears in",
        "Actions",
        "m@3",
        "2 workers, 4 running",
        "3 wanted: it is late",
        "3 12K 61 s 1,235 tok/s 9.7 s",
        "Workers",
        "0 jobs in 1",
        "interactive",
        "standard",
        "batch",
        "free slot",
        "m@3",
        "mill · 7",
        "0 of your jobs",
        "takes no others now",
        "heartbeat 6.0 s",
    ]


def test_the_models(tab: Tab) -> None:
    model = {
        "root": "m",
        "version": 3,
        "id": "m@3",
        "aliases": {"prod": 3, "old": 1, "next": 4},
        "task": "generate",
        "engine": "own",
    }
    model |= {"context_length": 32_768, "created": NOW - 86_400}
    quality = {"against": "m@1", "agreement": 0.9731, "kl": 0.00213, "same_answers": 5, "num_answers": 12}
    figures = {"version": {"perplexity": 17.0}, "reference": {"perplexity": 16.0}}
    known = {
        "m@3": {"state": "ready", "template": {"id": "p", "name": "guide", "version": 2},
                "verification": {"quality": {**quality, **figures}}},
        "n@1": {"state": "rejected", "state_reason": "it is wrong", "template": {"id": "p", "name": "", "version": 1},
                "verification": {"quality": {**quality, **figures, "agreement": None}}},
        "o@1": {"state": "verifying", "state_reason": None, "template": None,
                "verification": {"quality": None, "not_measured": "too large"}},
    }  # fmt: skip
    models = [
        model,
        model | {"id": "m"},
        *(model | {"id": f"{name}@1", "root": name, "version": 1, "aliases": {}} for name in "nop"),
    ]
    rollout = {
        "id": "rol_1", "state": "running", "model": "m", "alias": "prod", "stable_version": 2, "candidate_version": 3,
        "reason": None,
        "percent": 10, "current_step": 0, "steps": [{}, {}], "started_at": NOW - 60, "revision": 7,
    }  # fmt: skip
    ended = rollout | {"id": "rol_2", "state": "rolled_back", "reason": "it was slow", "current_step": 1}
    checks = [
        {"name": "error_rate", "decision": "bad", "text": "too many"},
        {"name": "speed", "decision": "undecided", "text": "?"},
    ]
    answers = {
        "GET live": [sse("history", HISTORY), sse("live", LIVE)],
        "GET models": {"data": models},
        "GET model_versions": {"data": [{"id": name, **told} for name, told in known.items()]},
        "GET rollouts": {"data": [rollout, ended]},
        "GET rollouts/rol_1": {"checks": checks},
        "GET rollouts/rol_1/plot": "<svg xmlns='http://www.w3.org/2000/svg'/>",
        "POST rollouts/rol_1/pause": {},
        "POST rollouts/rol_1/promote": {},
        "POST rollouts/rol_1/abort": {},
        "GET models/m/quality_plot": "<svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    shown = (
        "document.querySelectorAll('section[aria-label=Rollouts] .badge').length === 4 && "
        "document.body.innerText.includes('served by')"
    )
    open_faked(tab, "models", answers, shown)
    assert lines(tab) == [
        "Models",
        "Refresh",
        "Version State Task Engine Context Waiting Tokens/s First token p50 p95 Registered",
        "m@3",
        "with guide@2",
        "prod",
        "served by 2",
        "97.3 % of the next tokens of m@1, KL 0.0021, perplexity × 1.063",
        "generate own 32.8K 3 56 70 ms 0.90 s 2026-11-24 09:46:40",
        "n@1",
        "with p@1",
        "rejected",
        "it is wrong",
        "5 of 12 continuations as m@1",
        "generate own 32.8K – – – – 2026-11-24 09:46:40",
        "o@1",
        "verifying",
        "quality not measured: too large",
        "generate own 32.8K – – – – 2026-11-24 09:46:40",
        "p@1",
        "not known generate own 32.8K – – – – 2026-11-24 09:46:40",
        "Quality",
        "Draw the quality of m",
        "Draw the quality of n",
        "Rollouts",
        "Alias State Share Step Checks Started",
        "Actions",
        "m@prod",
        "version 2 → 3 · rol_1",
        "running 10 % 1 of 2",
        "error rate",
        "speed",
        "60 s ago EvidencePausePromoteAbort",
        "m@prod",
        "version 2 → 3 · rol_2",
        "rolled back",
        "it was slow",
        "10 % 2 of 2",
        "60 s ago Evidence",
        "Speeds are those of the last minute.",
    ]
    badges = "[...document.querySelectorAll('main .badge')].map((one) => [one.innerText, one.className, one.title])"
    assert tab.run(badges) == [
        ["prod", "badge now", ""],
        ["served by 2", "badge good", ""],
        ["rejected", "badge bad", ""],
        ["verifying", "badge warn", ""],
        ["not known", "badge", ""],
        ["running", "badge now", ""],
        ["error rate", "badge bad", "too many"],
        ["speed", "badge ", "?"],
        ["rolled back", "badge bad", ""],
    ]
    for verb in ("Pause", "Promote", "Abort"):
        click(tab, verb)
        assert sends(tab, "POST", f"rollouts/rol_1/{verb.lower()}")[2:] == ["{}", '"7"']
    click(tab, "Evidence")
    assert tab.wait("document.querySelector('img[alt^=Evidence]')?.alt") == "Evidence against version 3 over time"
    click(tab, "Draw the quality of m")
    sends(tab, "GET", "models/m/quality_plot")


def test_the_batches_and_dead_letters(tab: Tab) -> None:
    batch = {
        "id": "batch_0197f0c2a3b47d518e9a2b6c7d8e9f01",
        "model": "m@3",
        "status": "in_progress",
        "endpoint": "/v1/completions",
    }
    batch |= {
        "request_counts": {"total": 8, "completed": 3, "failed": 1},
        "created_at": NOW - 3600,
        "output_file_id": None,
        "error_file_id": "f2",
    }
    done = batch | {"id": "batch_2", "status": "completed", "output_file_id": "f1", "error_file_id": None}
    empty = batch | {
        "id": "batch_3",
        "status": "validating",
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "error_file_id": None,
    }
    answers: dict[str, Any] = {
        "GET batches": {"data": [batch, done, empty], "has_more": False, "last_id": "batch_3"},
        f"POST batches/{batch['id']}/cancel": {},
    }
    open_faked(tab, "batches", answers, "document.querySelectorAll('tbody tr').length === 3")
    assert lines(tab) == [
        "Batches",
        "Refresh",
        "Batch State Lines Failed URL Created",
        "Actions",
        "batch_…7d8e9f01",
        "m@3",
        "in progress",
        "4 of 8 1 /v1/completions 60 min 00 s ago ErrorsCancel",
        "batch_2",
        "m@3",
        "completed",
        "4 of 8 1 /v1/completions 60 min 00 s ago Results",
        "batch_3",
        "m@3",
        "validating",
        "0 of 0 0 /v1/completions 60 min 00 s ago Cancel",
    ]
    assert tab.run("[...document.querySelectorAll('.split i')].map((one) => one.style.width)") == ["50%", "50%", "0%"]
    click(tab, "Cancel")
    sends(tab, "POST", f"batches/{batch['id']}/cancel")
    letter = {
        "id": JOB_ID,
        "code": "poison",
        "message": "it broke 3 workers",
        "queue": "m@3",
        "attempt": 3,
        "crashes": 2,
    }
    letter |= {"created_at": NOW - 60, "replayed_as": None}
    letters = [letter, letter | {"id": "job_2", "code": "odd", "replayed_as": "job_3"}]
    answers = {
        "GET dead_letters": {"data": letters, "has_more": True, "last_id": "job_2"},
        f"POST dead_letters/{JOB_ID}/replay": {"job_id": "job_new"},
        "POST dead_letters/replay": {"data": [{}, {}], "has_more": True},
    }
    open_faked(tab, "dead-letters", answers, "document.querySelectorAll('tbody tr').length === 2")
    assert lines(tab) == [
        "Dead letters",
        "Reason",
        "any",
        "poison",
        "attempts ran out",
        "Replay all",
        "Job Reason Queue Attempts Lost workers Given up",
        "Actions",
        "job_…7d8e9f01 poison",
        "it broke 3 workers",
        "m@3 3 2 60 s ago Replay",
        "job_2 odd",
        "it broke 3 workers",
        "m@3 3 2 60 s ago replayed as job_3",
        "← Newer",
        "Page 1",
        "Older →",
    ]
    click(tab, "Replay")
    tab.wait("document.querySelector('.toast').innerText === 'Replayed as job_new'")
    choose = (
        "(() => { const list = document.querySelector('main select'); list.value = 'poison'; "
        "list.dispatchEvent(new Event('change', { bubbles: true })); })()"
    )
    tab.run(choose)
    sends(tab, "GET", "dead_letters?limit=25&code=poison")
    click(tab, "Replay all")
    assert json.loads(sends(tab, "POST", "dead_letters/replay")[2] or "") == {"code": "poison"}
    tab.wait("document.querySelector('.toast').innerText === '2 dead letters are replayed, and there are more'")


def test_the_webhooks_and_the_audit_log(tab: Tab) -> None:
    endpoint = {
        "id": "we_1",
        "url": "https://h.example/",
        "disabled_at": None,
        "disabled_reason": None,
        "failing_since": None,
        "events": ["job.failed", "job.succeeded"],
    }
    off = endpoint | {"id": "we_2", "disabled_at": 5, "disabled_reason": "gone"}
    delivery = {
        "id": "whd_1",
        "type": "job.failed",
        "job_id": JOB_ID,
        "batch_id": None,
        "registry_id": None,
        "status": "failed",
        "attempts": 4,
    }
    delivery |= {"url": "https://h.example/", "last_status": None, "last_error": "timeout", "created_at": NOW - 60}
    deliveries = [
        delivery,
        delivery | {"id": "whd_2", "job_id": None, "batch_id": "batch_1", "last_status": 500, "status": "dead"},
    ]
    answers: dict[str, Any] = {
        "GET webhook_endpoints": {"data": [endpoint, off, endpoint | {"id": "we_3", "failing_since": NOW - 120}]},
        "GET webhook_deliveries": {"data": deliveries, "has_more": False, "last_id": "x"},
        "POST webhook_endpoints/we_1/recover": {"queued": 3},
        "POST webhook_endpoints/we_1/test": {},
        "POST webhook_endpoints/we_2/enable": {},
        "POST webhook_deliveries/whd_1/redeliver": {},
    }
    open_faked(tab, "webhooks", answers, "document.querySelectorAll('tbody tr').length === 5")
    assert lines(tab) == [
        "Webhooks",
        "Endpoints",
        "URL State Events",
        "Actions",
        "https://h.example/",
        "we_1",
        "enabled job.failed, job.succeeded TestRecover",
        "https://h.example/",
        "we_2",
        "disabled: gone job.failed, job.succeeded EnableTestRecover",
        "https://h.example/",
        "we_3",
        "failing for 2 min 00 s job.failed, job.succeeded TestRecover",
        "Deliveries",
        "State",
        "any",
        "pending",
        "delivered",
        "failed",
        "Refresh",
        "Event State Tries URL Last answer Created",
        "Actions",
        "job.failed",
        "job_…7d8e9f01",
        "failed 4 https://h.example/ timeout 60 s ago Redeliver",
        "job.failed",
        "batch_1",
        "dead 4 https://h.example/ 500 60 s ago Redeliver",
    ]
    click(tab, "Recover")
    assert json.loads(sends(tab, "POST", "webhook_endpoints/we_1/recover")[2] or "") == {"since": NOW - 86_400}
    for name, path in (
        ("Test", "webhook_endpoints/we_1/test"),
        ("Enable", "webhook_endpoints/we_2/enable"),
        ("Redeliver", "webhook_deliveries/whd_1/redeliver"),
    ):
        click(tab, name)
        sends(tab, "POST", path)
    event = {
        "id": "audit_1",
        "object": "x",
        "type": "api_key.created",
        "effective_at": NOW,
        "actor": {"api_key": {"id": "key_1"}},
    }
    event |= {
        "ip_address": None,
        "request_id": "req_1",
        "api_key.created": {"id": "key_2"},
        "chain": {},
        "before_hash": None,
    }
    by_hand = event | {
        "id": "audit_2",
        "actor": {"type": "session", "session": {"user": {"id": "ann@host"}}},
        "ip_address": "::1",
        "note": "n",
    }
    answers = {"GET organization/audit_logs": {"data": [event, by_hand], "has_more": False, "last_id": "x"}}
    open_faked(tab, "audit", answers, "document.querySelectorAll('tbody tr').length === 2")
    assert lines(tab) == [
        "Audit",
        "Event",
        "Search",
        "Time Event By Address Details",
        '2026-11-25 09:46:40 api_key.created key_1 – {"id":"key_2"}',
        '2026-11-25 09:46:40 api_key.created ann@host ::1 {"id":"key_2"} n',
    ]
    enter(tab, {"type": " queue.paused "}, "Search")
    sends(tab, "GET", "organization/audit_logs?limit=50&event_types=queue.paused")


def test_keys_and_limits(tab: Tab) -> None:
    key = {
        "id": "key_1",
        "name": "ci",
        "redacted_value": "hr_1_…",
        "scopes": ["jobs:read", "jobs:write"],
        "models": None,
    }
    key |= {"last_used_at": NOW - 60, "revoked_at": None, "expires_at": None, "replaced_by": None}
    keys = [
        key,
        key
        | {
            "id": "key_2",
            "models": ["m", "n"],
            "expires_at": NOW + 86_400,
            "replaced_by": "key_9",
            "last_used_at": None,
        },
        key | {"id": "key_3", "expires_at": NOW - 1},
        key | {"id": "key_4", "revoked_at": NOW - 60},
    ]
    limits = {
        "requests_per_minute": 10,
        "input_tokens_per_minute": None,
        "concurrent_jobs": 4,
        "queued_tokens": 0,
        "monthly_cost": 2.5,
        "live_batches": None,
    }
    used = {
        "requests": 9,
        "input_tokens": None,
        "concurrent_jobs": 1,
        "queued_tokens": 12_345,
        "cost": 5.0,
        "live_batches": 0,
    }
    answers = {
        "GET organization/api_keys": {"data": keys, "has_more": False, "last_id": "key_4"},
        "GET organization/limits": {"limits": limits, "used": used},
        "POST organization/api_keys": key | {"value": "hr_1_secret"},
        "POST organization/api_keys/key_1/rotate": key | {"value": "hr_2_secret", "name": "next"},
        "DELETE organization/api_keys/key_1": {},
    }
    open_faked(
        tab,
        "keys",
        answers,
        "document.querySelectorAll('tbody tr').length === 4 && document.querySelector('dl') !== null",
    )
    assert lines(tab) == [
        "Keys and limits",
        "New key",
        "Limits of the tenant",
        "Requests a minute",
        "9 of 10",
        "Input tokens a minute",
        "– no limit",
        "Running and queued jobs",
        "1 of 4",
        "Queued tokens",
        "12.3K of 0",
        "Cost this month",
        "5 of 3",
        "Open batches",
        "0 no limit",
        "Keys",
        "Name State Scopes Models Last used",
        "Actions",
        "ci",
        "hr_1_…",
        "in force jobs:read, jobs:write every model 60 s ago RotateRevoke",
        "ci",
        "hr_1_…",
        "until 2026-11-26 09:46:40 jobs:read, jobs:write m, n – Revoke",
        "ci",
        "hr_1_…",
        "expired jobs:read, jobs:write every model 60 s ago",
        "ci",
        "hr_1_…",
        "revoked jobs:read, jobs:write every model 60 s ago",
    ]
    assert tab.run("[...document.querySelectorAll('.split i')].map((one) => [one.className, one.style.width])") == [
        ["c2", "90%"],
        ["c1", "25%"],
        ["c1", "0%"],
        ["c2", "100%"],
    ]
    click(tab, "Revoke")
    sends(tab, "DELETE", "organization/api_keys/key_1")
    click(tab, "Rotate")
    sends(tab, "POST", "organization/api_keys/key_1/rotate")
    tab.wait("document.querySelector('dialog pre')?.innerText === 'hr_2_secret'")
    click(tab, "Close")
    click(tab, "New key")
    tab.wait("document.querySelector('dialog [name=days]') !== null")
    enter(tab, {"name": "x", "days": "2"}, "Make the key")
    made = json.loads(sends(tab, "POST", "organization/api_keys")[2] or "")
    assert made == {"name": "x", "scopes": ["jobs:read", "jobs:write"], "expires_in_s": 172_800}
    assert tab.wait("document.querySelector('dialog pre')?.innerText") == "hr_1_secret"


COMMON = {"model": {"type": "string"}, "priority": {"type": "integer"}}
RANK: dict[str, Any] = {
    "properties": {
        "task": {"const": "rank"},
        **COMMON,
        "input": {"$ref": "#/components/schemas/RankInput"},
        "top_n": {"anyOf": [{"type": "null"}, {"type": "integer"}], "description": "how many", "default": 3},
        "cut": {"type": "boolean", "default": True},
    }
}
GENERATE = {"properties": {"task": {"default": "generate"}, **COMMON, "input": {"type": "object"}}}
RANK_INPUT: dict[str, Any] = {
    "required": ["query", "documents"],
    "properties": {
        "query": {"type": "string"},
        "documents": {"type": "array"},
        "how": {"enum": ["fast", "slow"], "type": "string", "default": "slow"},
    },
}
SAMPLING: dict[str, Any] = {
    "stop": {"type": "array"},
    "min_p": {"anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}, {"type": "null"}]},
    "seed": {"type": "integer", "maximum": 1e16, "description": "same seed, same text"},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "max_tokens": {"type": "integer", "minimum": 1},
    "ignore_eos": {"type": "boolean"},
}
EXAMPLE = {"task": "rank", "input": {"query": "Where?", "documents": ["a", "b"]}}
CONTENT = {
    "schema": {"oneOf": [{"$ref": "#/components/schemas/Generate"}, {"$ref": "#/components/schemas/Rank"}]},
    "examples": {"rank": {"value": EXAMPLE}},
}
OPENAPI = {
    "paths": {"/v1/jobs": {"post": {"requestBody": {"content": {"application/json": CONTENT}}}}},
    "components": {
        "schemas": {"Sampling": {"properties": SAMPLING}, "Generate": GENERATE, "Rank": RANK, "RankInput": RANK_INPUT}
    },
}
FIELDS = """[...document.querySelectorAll('form input[type=number], form [data-path]')].map((one) => [
  one.name, one.tagName, one.type, one.value, one.min, one.max, one.step, one.placeholder, one.required,
  one.closest('label').title, one.checked ?? null])"""


def test_the_form_of_a_task(tab: Tab) -> None:
    models = {"data": [{"id": "r@1", "task": "rank"}, {"id": "m@3", "task": "generate"}]}
    answers = {"openapi.json": OPENAPI, "GET models": models, "GET models/r@1": {}, "POST jobs": JOB}
    open_faked(tab, "playground", answers, "document.querySelector('[data-path=\"input.query\"]') !== null")
    assert tab.run(FIELDS) == [
        ["task:input.query", "TEXTAREA", "textarea", "Where?", None, None, None, "", True, "", None],
        ["task:input.documents", "TEXTAREA", "textarea", '["a","b"]', None, None, None, "", True, "", None],
        ["task:input.how", "SELECT", "select-one", "", None, None, None, None, False, "", None],
        ["task:top_n", "INPUT", "number", "", "", "", "1", "3", False, "how many", False],
        ["task:cut", "INPUT", "checkbox", "on", "", "", "", "", False, "", True],
    ]
    enter(tab, {"second": "m@3"}, "Run")
    tab.wait("asked.filter((one) => one[0] === 'POST').length === 2")
    sent = [json.loads(one[2] or "") for one in asked(tab) if one[0] == "POST"]
    assert [one.pop("model") for one in sent] == ["r@1", "m@3"]
    assert (
        sent[0]
        == sent[1]
        == {
            "task": "rank",
            "input": {"query": "Where?", "documents": ["a", "b"]},
            "service_class": "interactive",
            "metadata": {"from": "console"},
        }
    )
    tab.run("document.querySelector('[data-path=top_n]').value = '2'")
    tab.run("document.querySelector('[data-path=cut]').checked = false")
    tab.run("asked.length = 0; document.querySelector('[data-path=\"input.how\"]').value = 'slow'")
    click(tab, "Run")
    assert json.loads(sends(tab, "POST", "jobs")[2] or "") == {
        "task": "rank",
        "input": {"query": "Where?", "documents": ["a", "b"], "how": "slow"},
        "top_n": 2,
        "cut": False,
        "service_class": "interactive",
        "metadata": {"from": "console"},
        "model": "r@1",
    }
    tab.run("document.querySelector('[data-path=\"input.documents\"]').value = 'a'")
    click(tab, "Run")
    said = "input.documents is no JSON: texts need quotes, and lists brackets."
    tab.wait(f"document.querySelector('.answers [role=alert]')?.innerText === {json.dumps(said)}")


def test_the_playground(tab: Tab) -> None:
    ended = JOB | {"output": {"text": "Hello", "finish_reason": "length"}, "usage": {**JOB["usage"], "cost": None}}
    events = [
        sse("job.started", {}),
        sse("job.delta", {"text": "Hel"}),
        sse("job.restarted", {"text": "He"}),
        sse("job.succeeded", ended),
    ]
    answers = {
        "openapi.json": OPENAPI,
        "GET models": {"data": [{"id": "m@3", "task": "generate"}, {"id": "n@1", "task": "generate"}]},
        "GET models/m@3": {"sampling": {"temperature": 0.7}},
        "GET prompts": {"data": [{"id": "pmpt_1", "name": "guide", "version": 2, "variables": ["city"]}]},
        "POST jobs": JOB | {"usage": None, "output": None},
        f"GET jobs/{JOB_ID}/events": events,
    }
    open_faked(
        tab,
        "playground",
        answers,
        "document.forms[0]?.template && document.querySelector('[name=temperature]')?.placeholder === '0.7'",
    )
    assert tab.run(FIELDS) == [
        ["max_tokens", "INPUT", "number", "", "1", "", "1", "1,024 at most", False, "", False],
        ["temperature", "INPUT", "number", "", "0", "2", "any", "0.7", False, "", False],
        ["seed", "INPUT", "number", "", "", "", "1", "default", False, "same seed, same text", False],
        ["min_p", "INPUT", "number", "", "0", "1", "any", "default", False, "", False],
    ]
    click(tab, "Run")
    assert (
        tab.wait("document.querySelector('.answers [role=alert]')?.innerText")
        == "Write a message, or choose a prompt template."
    )
    enter(tab, {"message": "Hi", "system": "Be brief.", "max_tokens": "5", "temperature": "0.5"}, "Run")
    assert json.loads(sends(tab, "POST", "jobs")[2] or "") == {
        "input": {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
        "sampling": {"max_tokens": 5, "temperature": 0.5},
        "service_class": "interactive",
        "metadata": {"from": "console"},
        "model": "m@3",
    }
    tab.wait("document.querySelector('.answers [role=status]').innerText === 'succeeded'")
    assert [line for line in lines(tab, ".answers") if not line.startswith("first token")] == [
        "m@3",
        "job",
        "succeeded",
        "Hello",
        "5.0 tokens/s",
        "12.3K in, 21 out",
        "cost no price",
        "ended by length",
    ]
    tab.run("asked.length = 0; document.querySelector('[name=raw]').checked = true")
    enter(tab, {"system": ""}, "Run")
    assert json.loads(sends(tab, "POST", "jobs")[2] or "")["input"] == {"prompt": "Hi"}


FORMATS = """import('/console/format.js').then((m) => [
  [null, 0, 9999.4, 10000, 1234567, -20000].map(m.count),
  [null, 0, 0.00001, 0.005, 0.05, 0.2, 1.5, 9.94, 12, 89.6, 90, 5399, 5400, 129599, 129600, 864000].map(m.duration),
  [null, 5, 1500].map(m.milliseconds), [null, 0, 0.126, 1].map(m.percent),
  [m.clock(null), m.clock(3725.25), m.clock(3725.25, true), m.moment(86400), m.moment(null)],
  ["job_0197f0c2a3b47d518e9a2b6c7d8e9f01", "job_12345678901", "job_123456789012", "job_1234567890123", "x"]
    .map(m.shortId),
  ["celery@mill:7:boot", "mill:7:boot", "a:b", "x"].map(m.workerName),
  m.readable({a: "data:image/png;base64,QUJDRA==", b: Array(17).fill(1), c: Array(16).fill(0).length, d: "data:text"}),
  m.readable("data:image/png;base64," + "A".repeat(4000)),
])"""
SNIPPETS = """import('/console/snippets.js').then((m) => {
  const body = {model: "m", input: {messages: [{role: "user", content: "it's \\\\n"}]}, stream: false, n: null,
    long: ["x".repeat(40), "y".repeat(45)]};
  return [m.curl(body), m.python(body), m.node(body)].map((one) => one.replaceAll(location.origin, "ORIGIN"));
})"""
VARIABLES = """import('/console/prompt_form.js').then((m) => [
  m.variablesOf({}), m.variablesOf({variables: ["a"]}),
  m.variablesOf({variables: {properties: {a: {type: "string"},
    b: {type: "integer", default: 0, description: "how many"}}}}),
])"""


def test_figures_texts_and_programs(tab: Tab) -> None:
    assert tab.run(FORMATS) == [
        ["–", "0", "9,999", "10K", "1.2M", "-20K"],
        [
            "–",
            "0 ms",
            "0 ms",
            "5.0 ms",
            "50 ms",
            "0.20 s",
            "1.5 s",
            "9.9 s",
            "12 s",
            "90 s",
            "1 min 30 s",
            "89 min 59 s",
            "1 h 30 min",
            "35 h 59 min",
            "2 d",
            "10 d",
        ],
        ["–", "5.0 ms", "1.5 s"],
        ["–", "0 %", "13 %", "100 %"],
        ["–", "01:02:05", "01:02:05.250", "1970-01-02 00:00:00", "–"],
        ["job_…7d8e9f01", "job_12345678901", "job_123456789012", "job_…67890123", "x"],
        ["mill · 7", "mill · 7", "a:b", "x"],
        '{\n  "a": "image/png, 4 bytes",\n  "b": "17 numbers: 1, 1, 1, 1, …",\n  "c": 16,\n  "d": "data:text"\n}',
        '"image/png, 3 kB"',
    ]
    assert tab.run(SNIPPETS) == [
        "curl -s ORIGIN/v1/jobs \\\n"
        "  -H \"Authorization: Bearer $HEADRACE_API_KEY\" -H 'Content-Type: application/json' \\\n"
        "  -d '{\n"
        '  "model": "m",\n'
        '  "input": {\n'
        '    "messages": [\n'
        "      {\n"
        '        "role": "user",\n'
        '        "content": "it\'\\\'\'s \\\\n"\n'
        "      }\n"
        "    ]\n"
        "  },\n"
        '  "stream": false,\n'
        '  "n": null,\n'
        '  "long": [\n'
        '    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",\n'
        '    "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy"\n'
        "  ]\n"
        "}'\n",
        "import os\n"
        "\n"
        "from headrace.client import Client\n"
        "\n"
        'with Client("ORIGIN", os.environ["HEADRACE_API_KEY"]) as client:\n'
        "    job = client.submit(\n"
        '        model="m",\n'
        '        input={"messages": [{"role": "user", "content": "it\'s \\\\n"}]},\n'
        "        stream=False,\n"
        "        n=None,\n"
        "        long=[\n"
        '            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",\n'
        '            "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy",\n'
        "        ],\n"
        "    )\n"
        '    print(client.result(job["id"]))\n',
        'const response = await fetch("ORIGIN/v1/jobs", {\n'
        '  method: "POST",\n'
        "  headers: {\n"
        "    Authorization: `Bearer ${process.env.HEADRACE_API_KEY}`,\n"
        '    "Content-Type": "application/json",\n'
        '    Prefer: "wait=60",\n'
        "  },\n"
        "  body: JSON.stringify({\n"
        '    "model": "m",\n'
        '    "input": {\n'
        '      "messages": [\n'
        "        {\n"
        '          "role": "user",\n'
        '          "content": "it\'s \\\\n"\n'
        "        }\n"
        "      ]\n"
        "    },\n"
        '    "stream": false,\n'
        '    "n": null,\n'
        '    "long": [\n'
        '      "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",\n'
        '      "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy"\n'
        "    ]\n"
        "  }),\n"
        "});\n"
        "console.log(await response.json());\n",
    ]
    assert tab.run(VARIABLES) == [
        [],
        [{"name": "a", "isText": True, "standard": None, "about": ""}],
        [
            {"name": "a", "isText": True, "standard": None, "about": ""},
            {"name": "b", "isText": False, "standard": "0", "about": "how many"},
        ],
    ]
