"""``python -m tests.compose``: build the images, start the Compose stack, break each part under load, and check.

Prints a table and, as the last line, the report as JSON; exits 1 if a promise was broken, and 69 with a sentence
where no engine for containers can be used.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import httpx2
import psycopg
from rich.console import Console

from tests.chaos.checker import Findings, check
from tests.chaos.history import History, read_history
from tests.chaos.journal import Journal, read_journal
from tests.chaos.load import Load, LoadThread, orders
from tests.chaos.report import Json, report_of, save, show
from tests.compose.confined import check_confined, check_health, check_rights
from tests.compose.engine import Engine, EngineError, NoEngineError
from tests.compose.faults import Fault, plan, renew_images
from tests.compose.images import CONTROL, ROOT, WORKER, Images, cpu_torch
from tests.compose.stack import LASTING, Stack
from tests.models import tiny

console = Console(stderr=True)
BUILD = ROOT / "build" / "containers"
# Of sysexits.h: what this needs is not there. pytest has no such code.
NO_ENGINE = 69
AGAIN_S = 180.0
QUIET_S = 240.0
_LEFT = """
SELECT (SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')),
    (SELECT count(*) FROM webhook_deliveries WHERE state = 'pending')
"""
# As tests/chaos: far ahead means a planned retry.
_FORWARD = """
UPDATE webhook_deliveries SET next_attempt_at = now()
WHERE state = 'pending' AND next_attempt_at > now() + interval '20 s' RETURNING id
"""


def main() -> int:
    """Run it; return the exit code."""
    options = _arguments()
    BUILD.mkdir(parents=True, exist_ok=True)
    try:
        engine = Engine(BUILD)
        if shutil.which("docker-compose") is None:
            raise NoEngineError("docker-compose is not installed (Debian: apt-get install docker-compose)")
        with engine.serving() as address:
            return _test(options.pytest, engine, address) if options.pytest else _run(options, engine, address)
    except NoEngineError as error:
        say(f"not run: {error}")
        return NO_ENGINE
    except EngineError as error:
        say(str(error))
        return 1


def _test(paths: Sequence[str], engine: Engine, address: str) -> int:
    """Run tests on Postgres and Valkey in containers, and return pytest's exit code."""
    Images(engine, BUILD, say).bases()
    # Ryuk, which removes what testcontainers leaves, is an image of its own; the fixture removes its containers itself.
    env = {**engine.env, "DOCKER_HOST": address, "TESTCONTAINERS_RYUK_DISABLED": "true"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--containers", *paths], cwd=ROOT, env=env, check=False
    ).returncode


def _run(options: argparse.Namespace, engine: Engine, address: str) -> int:
    images = Images(engine, BUILD, say)
    images.bases()
    sizes = dict[str, Json]()
    if not options.built:
        began = time.monotonic()
        images.ours(options.torch or cpu_torch(), options.torch_index)
        say(f"both images built after {time.monotonic() - began:.0f} s")
        sizes = {name.rpartition("/")[2]: images.sizes(name) for name in (CONTROL, WORKER)}
        say(f"sizes: {sizes}")
    folder = BUILD / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    journal = Journal(folder / "nemesis.jsonl")
    stack = Stack(engine, address, folder, journal, say)
    try:
        make_model(folder / "models" / "tiny")
        stack.start()
        seen = first_job(stack)
        report, findings = break_each(stack, options.seed, options.rate, options.only)
        report |= {"images": sizes, "stand_ins": images.stood_in, "first": seen, "machine": platform.platform()}
    finally:
        if not options.keep:
            stack.end()
    show(report, findings, console)
    save(report, "containers")
    print(json.dumps(report))  # noqa: T201 - the report line
    return 1 if findings.broken else 0


def say(sentence: str) -> None:
    """Print progress."""
    console.print(sentence, style="dim", markup=False, highlight=False)


def make_model(folder: Path) -> None:
    """Write a tiny model with random weights."""
    folder.mkdir(parents=True)
    tiny.save(tiny.build("llama"), folder)
    tiny.save_tokenizer(folder)
    for path in (folder.parent, folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)


def first_job(stack: Stack) -> Json:
    """Stream one job of the tiny model with a key of the operator's; one webhook; Flower's page."""
    key = stack.first_key()
    headers = {"Authorization": f"Bearer {key}"}
    url = stack.api_urls[0]
    body = {"model": "tiny", "input": {"prompt": "a mill"}, "sampling": {"max_tokens": 40, "ignore_eos": True}}
    with httpx2.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as http:
        job = http.post("/v1/jobs", json=body).raise_for_status().json()
        kinds = list[str]()
        with http.stream("GET", f"/v1/jobs/{job['id']}/events") as response:
            kinds += [line.removeprefix("event: ") for line in response.iter_lines() if line.startswith("event: ")]
        ended = http.get(f"/v1/jobs/{job['id']}").json()
        if ended["status"] != "succeeded" or kinds[-1] not in ("job.succeeded", "succeeded"):
            raise EngineError(f"the first job ended {ended['status']}: {ended.get('error')}, events {kinds[-3:]}")
    say(f"one job of the tiny model was streamed: {len(kinds)} events")
    hooked = {"model": "fake", "input": {"prompt": "a hook"}, "webhook": {"url": f"{stack.hook_base}/0/ok"}}
    ask_and_wait(stack, hooked)
    until = time.monotonic() + 30
    while not (hooks := read_journal(stack.folder / "hooks.jsonl")) and time.monotonic() < until:
        time.sleep(0.2)
    if not hooks or not hooks[0]["signed"]:
        raise EngineError(f"no signed webhook came: {hooks} {stack.tail('dispatcher')}")
    say("one webhook came, signed")
    return {"events": len(kinds), "kernels": stack.kernels()}


def ask_and_wait(stack: Stack, body: Json, patience_s: float = AGAIN_S) -> float:
    """Return the seconds until a new job has succeeded, asked at every API in turn. Raises EngineError."""
    began = time.monotonic()
    headers = {"Authorization": f"Bearer {stack.tenants[0].key}"}
    turn, job = 0, None
    while time.monotonic() - began < patience_s:
        url = stack.api_urls[turn % len(stack.api_urls)]
        turn += 1
        try:
            if job is None:
                answer = httpx2.post(f"{url}/v1/jobs", json=body, headers=headers, timeout=5, trust_env=False)
            else:
                answer = httpx2.get(f"{url}/v1/jobs/{job}?wait=3", headers=headers, timeout=8, trust_env=False)
        except httpx2.HTTPError:
            time.sleep(0.2)
            continue
        if answer.status_code >= 300:
            time.sleep(0.2)
            continue
        found = answer.json()
        job = found["id"]
        if found["status"] == "succeeded":
            return time.monotonic() - began
        if found["status"] not in ("queued", "running"):
            raise EngineError(f"a job ended {found['status']}: {found.get('error')}")
    raise EngineError(f"no job succeeded within {patience_s:.0f} s of asking")


def break_each(stack: Stack, seed: int, rate: float, only: Sequence[str]) -> tuple[Json, Findings]:
    """Do each fault under load, wait for the end of every job, and check."""
    confined, health = check_confined(stack), check_health(stack)
    stack.wait_healthy(LASTING, AGAIN_S)
    say(f"beyond what a container may: {confined or 'none'}; healthy although they hang: {health or 'none'}")
    began = time.monotonic()
    load = Load(
        Journal(stack.folder / "client.jsonl"), seed=seed, tenants=stack.tenants, api_urls=stack.api_urls,
        hook_base=stack.hook_base,
    )  # fmt: skip
    thread = LoadThread(load, orders(seed, len(stack.tenants)), rate)
    renew_images(stack.engine, str(stack.folder))
    faults = dict[str, Json]()
    for number, (name, strike) in enumerate(plan()):
        if only and not any(word in name for word in only):
            continue
        try:
            faults[name] = _strike(stack, load, number, name, strike)
        except EngineError as error:
            # The others still say something.
            faults[name] = {"not_recovered": str(error)[:300]}
        say(f"{name}: {faults[name]}")
    thread.end(QUIET_S)
    wait_for_the_end(stack, thread)
    history = read(stack)
    findings = check(history, needs_stale=False, needs_kills=not only)
    findings.violations |= {
        "not_overcome": [
            f"{name}: {told['not_recovered']}" for name, told in faults.items() if "not_recovered" in told
        ],
        "confined": confined,
        "health": health,
        "rights": check_rights(stack),
    }
    return report_of(
        history, findings, seed=seed, duration_s=time.monotonic() - began, run="containers", faults=faults
    ), findings


def _strike(stack: Stack, load: Load, number: int, name: str, strike: Fault) -> Json:
    """Do one fault and return the seconds until it was overcome. Raises EngineError."""
    stack.journal.write("strike", fault=name)
    accepted, struck = load.num_accepted, time.monotonic()
    strike(stack)
    lasted = time.monotonic() - struck
    probe = {"model": "fake", "input": {"prompt": f"probe {number}"}, "sampling": {"max_tokens": 8}}
    again = ask_and_wait(stack, probe)
    stack.wait_healthy(LASTING, AGAIN_S)
    return {
        "lasted_s": round(lasted, 1),
        "first_job_after_s": round(again, 1),
        "all_healthy_after_s": round(time.monotonic() - struck - lasted, 1),
        "accepted_meanwhile": load.num_accepted - accepted,
    }


def wait_for_the_end(stack: Stack, load: LoadThread) -> None:
    """Wait until customers and tables are done, or until a timeout."""
    began = time.monotonic()
    left: object = None
    while time.monotonic() - began < QUIET_S:
        try:
            stack.ask(_FORWARD)
            left = stack.ask(_LEFT)[0]
        except psycopg.Error as error:
            left = str(error)
        if left == (0, 0) and not load.is_alive:
            break
        time.sleep(1)
    say(f"quiet after {time.monotonic() - began:.0f} s; left: {left}")


def read(stack: Stack) -> History:
    """Everything that is known of the run, without the jobs that this program asked for itself."""
    for service in LASTING:
        stack.keep_log(service)
    found = read_history(stack.folder, stack.database)
    ordered = {event["prompt"] for event in found.of_client("order")}
    return replace(found, jobs=[job for job in found.jobs if job.prompt in ordered])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.compose", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=4.0, help="jobs submitted a second")
    parser.add_argument("--torch", help="a requirement in place of the locked torch, as torch==2.13.0+cpu")
    parser.add_argument("--torch-index", help="the package index of torch's CPU builds")
    parser.add_argument("--built", action="store_true", help="take the images that are here")
    parser.add_argument("--keep", action="store_true", help="leave the stack running")
    parser.add_argument(
        "--only", action="append", default=[], help="only faults with this word in their name; repeatable"
    )
    parser.add_argument("--pytest", nargs="+", metavar="PATH", help="run these tests on servers in containers instead")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
