"""The pages of batches and dead letters, with made-up answers: their whole text, and the requests that they send."""

import pytest

from benchmarks.console.chromium import Tab
from tests.features.console.faked_answers import JOB_ID
from tests.features.console.faked_api import (
    NOW,
    click,
    lines,
    open_faked,
    page_text,
    rows,
    sends,
    sent_body,
    toast_says,
)

pytestmark = pytest.mark.timeout(240)

BATCH = {
    "id": "batch_0197f0c2a3b47d518e9a2b6c7d8e9f01",
    "model": "m@3",
    "status": "in_progress",
    "endpoint": "/v1/completions",
    "request_counts": {"total": 8, "completed": 3, "failed": 1},
    "created_at": NOW - 3600,
    "output_file_id": None,
    "error_file_id": "f2",
    "errors": None,
}
DONE_BATCH = BATCH | {"id": "batch_2", "status": "completed", "output_file_id": "f1", "error_file_id": None}
EMPTY_BATCH = BATCH | {
    "id": "batch_3",
    "status": "validating",
    "request_counts": {"total": 0, "completed": 0, "failed": 0},
    "error_file_id": None,
}
ERROR = {"code": "duplicate_custom_id", "message": "a twice", "param": "custom_id", "line": 2}
NO_FILE = {"code": "empty_file", "message": "no line", "param": None, "line": None}
FAILED_BATCH = EMPTY_BATCH | {"id": "batch_4", "status": "failed", "errors": {"data": [NO_FILE, *[ERROR] * 6]}}
DEAD_LETTER = {
    "id": JOB_ID,
    "code": "poison",
    "message": "it broke 3 workers",
    "queue": "m@3",
    "attempt": 3,
    "crashes": 2,
    "created_at": NOW - 60,
    "replayed_as": None,
}


def test_the_batches(tab: Tab) -> None:
    answers = {
        "GET batches": {
            "data": [BATCH, DONE_BATCH, EMPTY_BATCH, FAILED_BATCH],
            "has_more": False,
            "last_id": "batch_4",
        },
        f"POST batches/{BATCH['id']}/cancel": {},
    }
    open_faked(tab, "batches", answers, rows(5))
    assert lines(tab) == page_text("batches")
    assert tab.run("[...document.querySelectorAll('.split i')].map((one) => one.style.width)") == [
        "50%",
        "50%",
        "0%",
        "0%",
    ]
    click(tab, "Cancel")
    sends(tab, "POST", f"batches/{BATCH['id']}/cancel")


def test_the_dead_letters(tab: Tab) -> None:
    letters = [DEAD_LETTER, DEAD_LETTER | {"id": "job_2", "code": "odd", "replayed_as": "job_3"}]
    answers = {
        "GET dead_letters": {"data": letters, "has_more": True, "last_id": "job_2"},
        f"POST dead_letters/{JOB_ID}/replay": {"job_id": "job_new"},
        "POST dead_letters/replay": {"data": [{}, {}], "has_more": True},
    }
    open_faked(tab, "dead-letters", answers, rows(2))
    assert lines(tab) == page_text("dead_letters")
    click(tab, "Replay")
    toast_says(tab, "Replayed as job_new")
    choose = (
        "(() => { const list = document.querySelector('main select'); list.value = 'poison'; "
        "list.dispatchEvent(new Event('change', { bubbles: true })); })()"
    )
    tab.run(choose)
    sends(tab, "GET", "dead_letters?limit=25&code=poison")
    click(tab, "Replay all")
    assert sent_body(tab, "dead_letters/replay") == {"code": "poison"}
    toast_says(tab, "2 dead letters are replayed, and there are more")
