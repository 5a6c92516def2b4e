"""The other pages of the console in a real browser, by keyboard: each does its main action and shows the result.

On each page ``check_access`` looks at names, contrast, the Tab key and the width, light on a desktop, dark on a phone.
"""

import json
from decimal import Decimal
from pathlib import Path

import httpx2
import pytest
import redis

from benchmarks.console.chromium import Tab
from headrace.features.images.classify.task import IMAGE_CLASSIFY
from headrace.models.catalog import register
from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.hosts.host_reports import HostOutlook, HostReport, now
from headrace.store.payloads.conversation import EXAMPLE_IMAGE
from headrace.store.registry.models import register_version
from headrace.store.registry.quality_report import QualityReport
from headrace.store.registry.verification import Verification
from headrace.store.registry.verification_report import VerificationReport
from headrace.store.tenants.api_keys import create_key
from headrace.store.tenants.usage import Price, set_price
from tests.features.console.console_tab import check_access, fill, open_page, press
from tests.features.hosts.test_host_routes import GIB, host, tell
from tests.features.rollouts.test_rollout_routes import BODY as ROLLOUT
from tests.processes import wait_for
from tests.producer_api.calling import bury, submit
from tests.producer_api.conftest import MakeClient
from tests.producer_api.jobs.test_flow_routes import flow
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.turn_worker import TurnWorker, add_weather

pytestmark = pytest.mark.timeout(240)


def text_is_shown(tab: Tab, text: str) -> None:
    tab.wait(f"document.body.innerText.includes({json.dumps(text)})")


def texts(tab: Tab, what: str) -> list[str]:
    found: list[str] = tab.run(f"[...document.querySelectorAll({json.dumps(what)})].map((one) => one.textContent)")
    return found


def button(tab: Tab, name: str) -> str:
    """Mark the button with this name; return its selector."""
    found = f"[...document.querySelectorAll('main button:enabled')].find((b) => b.textContent === {json.dumps(name)})"
    tab.wait(f"{found} !== undefined")
    tab.run("document.querySelectorAll('[data-wanted]').forEach((one) => delete one.dataset.wanted)")
    tab.run(f"{found}.dataset.wanted = 'yes'")
    return "[data-wanted]"


def register_second(db: Database) -> None:
    about = {"model": "tiny", "runner": "fake", "source": "fake:2", "dtype": "float32", "context_window": 512}
    register_version(db, **about, digest="1" * 64, files={}, actor="tests")


@pytest.mark.uses("templates")
def test_the_playground_streams_the_answers_of_two_versions(
    tab: Tab, api: httpx2.Client, key: str, db: Database, redis_client: redis.Redis, worker: ScriptedWorker
) -> None:
    register_second(db)
    workers = {1: worker, 2: ScriptedWorker(db, redis_client, "tiny@2")}
    template = {"name": "guide", "instructions": "You know {{ city }}.", "variables": ["city"]}
    assert api.post("/v1/prompts", json=template).status_code == 201
    open_page(tab, key, "playground?model=tiny@1", "option[value='tiny@2']")
    tab.wait(
        "document.querySelector('[name=first]').value === 'tiny@1' && document.querySelector('[name=seed]') !== null"
    )
    check_access(tab)
    tab.run("document.querySelector('[name=second]').value = 'tiny@2'")
    tab.wait("document.querySelectorAll('[name=template] option').length === 2")
    tab.run(
        "(() => { const chosen = document.querySelector('[name=template]'); chosen.selectedIndex = 1;"
        " chosen.dispatchEvent(new Event('change', { bubbles: true })); })()"
    )
    tab.wait("document.querySelector('[name=\"variable:city\"]') !== null")
    tab.run("document.querySelector('[name=\"variable:city\"]').focus()")
    fill(tab, "Rome")
    tab.run("document.querySelector('[name=message]').focus()")
    fill(tab, "Name three rivers.")
    press(tab, "form button.primary")
    jobs = wait_for(lambda: found if len(found := api.get("/v1/jobs").json()["data"]) == 2 else None)
    attempts = {job["model_version"]: workers[job["model_version"]].claim(job["id"]) for job in jobs}
    for version, attempt in attempts.items():
        asked = [one["content"] for one in attempt.claim.payload["input"]["messages"]]
        assert asked == ["You know Rome.", "Name three rivers."]
        workers[version].say(attempt, f"Rivers of {version}")
        text_is_shown(tab, f"Rivers of {version}")
        assert api.get(f"/v1/jobs/{attempt.claim.job_id}").json()["status"] == "running", "shown before the end"
        workers[version].succeed(attempt)
    wait_for(lambda: texts(tab, ".answers [role=status]") == ["succeeded", "succeeded"])
    assert texts(tab, ".answers h2") == ["tiny@1", "tiny@2"]


def register_measured(db: Database) -> None:
    """A version with a quality report."""
    register_version(
        db, model="exact", runner="torch", source="/models", digest="7" * 64, dtype="int8", context_window=512,
        actor="tests", quantized_from="tiny@1",
    )  # fmt: skip
    verification = Verification(db, "exact", 1, worker="w", lease_s=60)
    verification.claim()
    report = QualityReport(
        against="tiny@1", num_tokens=5000, kl=0.002, agreement=0.97, perplexity=16, reference_perplexity=16, took_s=60
    )
    verification.accept(VerificationReport(worker="w", quality=report))


@pytest.mark.uses("templates")
def test_models_show_their_quality_and_a_new_alias(tab: Tab, api: httpx2.Client, key: str, db: Database) -> None:
    register_measured(db)
    assert api.post("/v1/prompts", json={"name": "guide", "instructions": "Be brief."}).status_code == 201
    with_template = {"files_of": "tiny@1", "prompt": {"id": "guide"}}
    assert api.post("/v1/models/tiny/versions", json=with_template).json()["id"] == "tiny@2"
    open_page(tab, key, "models", "tbody tr")
    text_is_shown(tab, "with guide@1")
    check_access(tab)
    text_is_shown(tab, "97.0 % of the next tokens of tiny@1, KL 0.0020")
    assert api.put("/v1/models/tiny/aliases/prod", json={"version": 1}).status_code == 200
    press(tab, button(tab, "Refresh"))
    tab.wait("[...document.querySelectorAll('tbody .badge.now')].some((one) => one.textContent === 'prod')")


def test_a_rollout_is_paused_and_resumed(tab: Tab, api: httpx2.Client, key: str, db: Database) -> None:
    register_second(db)
    assert api.post("/v1/rollouts", json=ROLLOUT).status_code == 201
    offered = "section[aria-label=Rollouts] .actions button"
    open_page(tab, key, "models", offered)
    check_access(tab)
    for verb, other in (("Pause", "Resume"), ("Resume", "Pause")):
        assert texts(tab, offered) == ["Evidence", verb, "Promote", "Abort"]
        press(tab, button(tab, verb))
        wait_for(lambda other=other: texts(tab, offered) == ["Evidence", other, "Promote", "Abort"])


def test_a_job_of_steps_has_a_line_for_each_step(
    tab: Tab, api: httpx2.Client, key: str, worker: ScriptedWorker
) -> None:
    made = api.post("/v1/jobs", json=flow())
    assert made.status_code == 202, made.text
    path = f"/v1/jobs/{made.json()['id']}"
    steps = {step["name"]: step["job_id"] for step in api.get(path).json()["steps"]}
    worker.succeed(worker.claim(steps["first"]), "short")
    attempt = worker.claim(steps["second"])
    open_page(tab, key, f"job/{made.json()['id']}", ".timeline .step-part.open")
    assert texts(tab, ".lane > span") == ["first", "second"]
    lines = tab.run(
        "[...document.querySelectorAll('.bar')].map((bar) => [...bar.children].map((one) => one.className))"
    )
    assert [[name.strip() for name in line] for line in lines] == [["wait", "step-part"], ["wait", "step-part open"]]
    check_access(tab)
    worker.succeed(attempt, "very short")
    tab.wait("document.querySelector('.badge').textContent === 'succeeded'")
    rows = tab.run(
        "[...document.querySelectorAll('table[aria-labelledby=steps] tbody tr')].map((row) => row.innerText)"
    )
    assert [row.split()[:2] for row in rows] == [["first", "succeeded"], ["second", "succeeded"]]
    press(tab, f"a[href='#/job/{steps['second']}']")
    tab.wait(f"document.querySelector(\"a[href='#/job/{made.json()['id']}']\") !== null")
    assert texts(tab, ".lane > span") == ["Attempt 1"]


def test_calls_are_refused_with_a_reason_and_approved(
    tab: Tab, api: httpx2.Client, key: str, db: Database, tenant: str, redis_client: redis.Redis
) -> None:
    add_weather(db, tenant)
    asked = {"names": ["weather"], "require_approval": "always"}
    question = {"messages": [{"role": "user", "content": "Where is it warm?"}]}
    made = api.post("/v1/jobs", json={"model": "wide", "input": question, "server_tools": asked})
    assert made.status_code == 202, made.text
    rome, oslo = ('{"city": "Rome"}', '{"city": "Oslo"}')
    calls = "\n".join(f'{{"name": "weather", "arguments": {one}}}' for one in (rome, oslo))
    TurnWorker(db, redis_client, api, made.json()["id"]).say("answer", calls)
    page, shown = f"job/{made.json()['id']}", "[aria-labelledby=approvals] pre"
    open_page(tab, create_key(db, tenant, "r", ["jobs:read"], actor="t"), page, shown)
    press(tab, button(tab, "Approve"))
    text_is_shown(tab, "jobs:write")
    open_page(tab, key, page, shown)
    assert texts(tab, shown) == [rome, oslo]
    check_access(tab)
    tab.run("document.querySelector('[name=reason]').focus()")
    fill(tab, "Too far.")
    press(tab, button(tab, "Refuse"))
    wait_for(lambda: texts(tab, shown) == [oslo], "the first call is answered")
    press(tab, button(tab, "Approve"))
    tab.wait(f"document.querySelector({json.dumps(shown)}) === null")
    found = api.get("/v1/approvals", params={"order": "asc"}).json()["data"]
    assert [(one["arguments"], one["status"], one["reason"]) for one in found] == [
        (rome, "refused", "Too far."),
        (oslo, "approved", None),
    ]
    press(tab, button(tab, "Cancel"))
    tab.wait("document.querySelector('.badge').textContent === 'cancelled'")
    # The answers 403 of the first key are errors in the browser's log, as they should be.
    tab.problems[:] = [one for one in tab.problems if "403" not in one]


def test_the_picture_of_a_job_is_told_by_kind_and_size(tab: Tab, api: httpx2.Client, key: str, db: Database) -> None:
    register(db, "eye", IMAGE_CLASSIFY.fake_runner, "auto", actor="tests")
    order = {"task": "image_classify", "model": "eye", "input": {"images": [EXAMPLE_IMAGE]}}
    made = api.post("/v1/jobs", json=order)
    assert made.status_code == 202, made.text
    open_page(tab, key, f"job/{made.json()['id']}", "section[aria-labelledby=request] pre")
    shown = texts(tab, "section[aria-labelledby=request] pre")
    assert ["image/png, " in text and "base64" not in text for text in shown] == [True, True], shown


def test_a_batch_is_cancelled_and_its_errors_are_saved(tab: Tab, api: httpx2.Client, key: str, tmp_path: Path) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "tiny", "prompt": "x"}}
    sent = {"file": ("in.jsonl", json.dumps(line).encode())}
    file = api.post("/v1/files", files=sent, data={"purpose": "batch"}).json()
    order = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = api.post("/v1/batches", json=order).json()
    wait_for(lambda: api.get(f"/v1/batches/{batch['id']}").json()["status"] == "in_progress")
    open_page(tab, key, "batches", "tbody tr")
    check_access(tab)
    press(tab, "tbody button.danger")
    tab.wait("['cancelling', 'cancelled'].includes(document.querySelector('tbody .badge').textContent)")
    wait_for(lambda: api.get(f"/v1/batches/{batch['id']}").json()["status"] == "cancelled")
    tab.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    press(tab, button(tab, "Refresh"))
    press(tab, button(tab, "Errors"))
    saved = tmp_path / f"{batch['id']}-errors.jsonl"
    wait_for(saved.exists, "the browser has saved the file")
    assert json.loads(saved.read_text())["error"]["code"] == "batch_cancelled"


def test_a_test_event_is_sent_to_an_endpoint_and_the_last_day_is_recovered(
    tab: Tab, api: httpx2.Client, key: str, db: Database, tenant: str
) -> None:
    order = {"url": "https://example.com/hook", "events": ["job.succeeded"]}
    made = api.post("/v1/webhook_endpoints", json=order).raise_for_status().json()
    for _ in range(25):
        api.post(f"/v1/webhook_endpoints/{made['id']}/test").raise_for_status()
    open_page(tab, key, "webhooks", "tbody tr")
    press(tab, button(tab, "Test"))
    text_is_shown(tab, "A test event is sent")
    press(tab, button(tab, "Refresh"))
    text_is_shown(tab, "webhook.test")
    check_access(tab)
    press(tab, button(tab, "Older →"))
    text_is_shown(tab, "Page 2")
    tab.run(
        "(() => { const list = document.querySelector('main select'); list.value = 'pending';"
        " list.dispatchEvent(new Event('change', { bubbles: true })); })()"
    )
    text_is_shown(tab, "Page 1")
    press(tab, button(tab, "Recover"))
    text_is_shown(tab, "0 events of the last day are sent again")
    (recovered,) = (one for one in list_entries(db, tenant) if "since" in one.detail)
    assert recovered.at.timestamp() - recovered.detail["since"] == pytest.approx(86_400, abs=3600)


def test_a_dead_letter_is_replayed(tab: Tab, api: httpx2.Client, key: str, db: Database) -> None:
    lost = bury(db, submit(api))
    open_page(tab, key, "dead-letters", f"a[href='#/job/{lost}']")
    check_access(tab)
    press(tab, "tbody button")
    text_is_shown(tab, "replayed as")
    (letter,) = api.get("/v1/dead_letters").json()["data"]
    assert tab.run(f"document.querySelector(\"a[href='#/job/{letter['replayed_as']}']\") !== null")


def test_a_key_is_made_shown_once_and_revoked(tab: Tab, other_key: str, make_client: MakeClient) -> None:
    open_page(tab, other_key, "keys", "tbody tr")
    check_access(tab)
    press(tab, "main .head button.primary")
    tab.wait("document.activeElement.name === 'name'")
    check_access(tab)
    fill(tab, "from the console")
    tab.press("Enter")
    value = tab.wait("document.querySelector('dialog[open] pre')?.textContent")
    assert make_client(value).get("/v1/jobs").status_code == 200
    press(tab, "dialog[open] button:not(.primary)")
    row = "[...document.querySelectorAll('tbody tr')].find((one) => one.textContent.includes('from the console'))"
    tab.wait(f"{row} !== undefined && document.querySelector('dialog') === null")
    tab.run(f"{row}.querySelector('button.danger').dataset.wanted = 'yes'")
    press(tab, "[data-wanted]")
    tab.wait(f"{row}.querySelector('.badge').textContent === 'revoked'")


def test_usage_is_told_by_key_model_and_day(
    tab: Tab, api: httpx2.Client, db: Database, tenant: str, worker: ScriptedWorker
) -> None:
    set_price(db, "tiny", 1, Price(Decimal(10**6), Decimal(10**6), Decimal(10**6)), actor="tests")
    second = create_key(db, tenant, "nightly", ["jobs:write"], actor="t")
    body = {"model": "tiny", "input": {"prompt": "x"}}
    made = [submit(api), api.post("/v1/jobs", json=body, headers={"Authorization": f"Bearer {second}"}).json()["id"]]
    used = []
    for job_id in made:
        attempt = worker.claim(job_id)
        worker.say(attempt, "well")
        worker.succeed(attempt)
        used.append(api.get(f"/v1/jobs/{job_id}").json()["usage"])
    boss = create_key(db, tenant, "boss", ["admin"], actor="t")
    open_page(tab, boss, "usage", "[aria-label=Keys] tbody tr")
    check_access(tab)
    rows = [
        row.split()
        for row in tab.run("[...document.querySelectorAll('[aria-label=Keys] tbody tr')].map((row) => row.innerText)")
    ]
    tokens = {row[0]: (row[-6], row[-5], row[-3]) for row in rows}
    assert tokens["nightly"] == ("1", str(used[1]["input_tokens"]), str(used[1]["output_tokens"]))
    total = [sum(one[name] for one in used) for name in ("input_tokens", "output_tokens")]
    assert tokens["The"] == ("2", *map(str, total))
    assert rows[-1][-1] == f"${sum(total):.2f}"
    assert [row.split()[0] for row in texts(tab, "[aria-label=Models] tbody tr td:first-child")] == ["tiny@1"]


def test_an_audit_event_is_found(tab: Tab, api: httpx2.Client, key: str) -> None:
    for verb in ("pause", "resume"):
        assert api.post(f"/v1/queues/tiny@1/{verb}", json={}).status_code == 200
    open_page(tab, key, "audit", "tbody tr")
    check_access(tab)
    tab.run("document.querySelector('[name=type]').focus()")
    fill(tab, "queue.paused")
    tab.press("Enter")
    wait_for(lambda: texts(tab, "tbody tr td:nth-child(2)") == ["queue.paused"])


def test_the_live_page_shows_model_hosts_and_follows_them(tab: Tab, db: Database, key: str) -> None:
    tell(db, host(HostOutlook(queue="tiny@1", in_s=12.4)))
    open_page(tab, key, "live", "[aria-labelledby=hosts] tbody tr")
    check_access(tab)
    (shown,) = texts(tab, "section[aria-labelledby=hosts] tbody tr")
    assert all(part in shown for part in ("m1", "0 swaps", "other@1 serving", "1.0 of 2.0 GiB"))
    assert "old@1 draining: idle for 20 s" in shown
    assert texts(tab, "[aria-labelledby=hosts] tbody .badge.good") == ["serving"]
    text_is_shown(tab, "loads in about 12 s")
    tell(db, HostReport(name="m1", started_at=now(), budget_bytes=2 * GIB, num_swaps=1, asleep=("other@1",)))
    tab.wait("document.querySelector('[aria-labelledby=hosts] tbody tr').textContent.includes('1 swaps')")
    (shown,) = texts(tab, "section[aria-labelledby=hosts] tbody tr")
    assert "other@1 asleep" in shown
    assert "serving" not in shown, "no version has a place any more"
