"""The playground makes a form for any task from the schema of its request, with the task's example filled in."""

import json
from typing import Any

import httpx2
import pytest
import redis

from benchmarks.console.chromium import Tab
from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.tasks.registry import TASKS
from tests.features.console.console_tab import check_access, fill, open_page, press
from tests.processes import wait_for
from tests.producer_api.scripted_worker import ScriptedWorker

pytestmark = pytest.mark.timeout(240)


def choose(tab: Tab, name: str, value: str) -> None:
    """Choose an option of a list, as a user does."""
    tab.wait(f"document.querySelector('select[name={name}] option[value=\"{value}\"]') !== null")
    tab.run(
        f"(() => {{ const list = document.querySelector('select[name={name}]'); list.value = {json.dumps(value)};"
        " list.dispatchEvent(new Event('change', { bubbles: true })); })()"
    )


def asked(api: httpx2.Client, number: int) -> dict[str, Any]:
    """The request of the newest job, once there are so many."""
    jobs = wait_for(lambda: found if len(found := api.get("/v1/jobs").json()["data"]) == number else None)
    newest = max(jobs, key=lambda one: one["created_at"])
    found: dict[str, Any] = api.get(f"/v1/jobs/{newest['id']}/request").json()
    return found


def test_every_task_has_a_form_with_its_example(
    tab: Tab, api: httpx2.Client, key: str, db: Database, redis_client: redis.Redis
) -> None:
    register(db, "labels", "fake-classifier", "auto", actor="tests")
    register(db, "ranks", "fake-cross-encoder", "auto", actor="tests")
    open_page(tab, key, "playground?model=labels", "[data-path='input.texts']")
    check_access(tab)
    tab.run("(() => { const one = document.querySelector('[data-path=top_k]'); one.focus(); one.select(); })()")
    fill(tab, "2")
    press(tab, "form button.primary")
    first = asked(api, 1)
    example = dict(TASKS["classify"].examples["labels"]["value"])
    for name in ("task", "input"):
        assert first["body"][name] == example[name]
    assert first["body"]["top_k"] == 2
    worker = ScriptedWorker(db, redis_client, "labels@1")
    worker.answer(worker.claim(first["job_id"]), {"labels": ["good", "bad"], "classifications": []})
    tab.wait("document.querySelector('.answers pre').textContent.includes('\"good\"')")

    choose(tab, "first", "ranks")
    tab.wait("document.querySelector('[data-path=\"input.query\"]')?.value === 'Where is the mill?'")
    choose(tab, "task", "score")
    tab.wait("document.querySelector('[data-path=\"input.text_1\"]') !== null")
    press(tab, "form button.primary")
    second = asked(api, 2)["body"]
    assert second["input"] == TASKS["score"].examples["pairs"]["value"]["input"]

    for task in sorted(TASKS.keys() - {"generate"}):
        choose(tab, "task", task)
        tab.wait(f"document.querySelector('select[name=task]').value === {json.dumps(task)}")
        value = "[...document.querySelectorAll('[data-path]')].some((one) => one.value !== '' && one.value !== 'on')"
        tab.wait(value)


def test_a_value_that_is_no_json_is_said_before_anything_is_sent(
    tab: Tab, api: httpx2.Client, key: str, db: Database
) -> None:
    register(db, "labels", "fake-classifier", "auto", actor="tests")
    open_page(tab, key, "playground?model=labels", "[data-path='input.texts']")
    tab.run(
        "(() => { const one = document.querySelector('[data-path=\"input.texts\"]'); one.focus(); one.select(); })()"
    )
    fill(tab, "a mill")
    press(tab, "form button.primary")
    tab.wait("document.querySelector('.answers [role=alert]')?.textContent.includes('input.texts is no JSON')")
    assert api.get("/v1/jobs").json()["data"] == []
