"""``make walk``: the files that a streamed chat, and a job with a webhook, enter in a real stack with a fake model.

What every one of three enters counts, without what idle processes enter.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx2

from headrace.store.ports import free_port
from headrace.store.settings import child_environment

ROOT = Path(__file__).parents[2]
SHOWN_S = 2.0
"""Time for calls of webhooks after a job, and for a process to write the functions that it entered."""


def chat(api: httpx2.Client) -> None:
    """Stream a chat to its end."""
    body = {
        "model": "fake",
        "stream": True,
        "max_tokens": 12,
        "messages": [{"role": "user", "content": f"{time.time_ns()}"}],
    }
    assert "[DONE]" in api.post("/v1/chat/completions", json=body).raise_for_status().text


def job(api: httpx2.Client) -> None:
    """Run a job with a webhook to a port on which no server listens."""
    body = {"model": "fake", "input": {"prompt": f"{time.time_ns()}"}, "webhook": {"url": "http://127.0.0.1:9/"}}
    accepted = api.post("/v1/jobs", json=body).raise_for_status().json()
    assert api.get(f"/v1/jobs/{accepted['id']}", params={"wait": 30}).json()["status"] == "succeeded"


def recorded(folder: Path, name: str, act: Callable[[], object]) -> set[tuple[str, str]]:
    """Return the functions of ours that all processes entered meanwhile, each with its file."""
    (folder / "recording").write_text(name)
    time.sleep(0.2)
    act()
    time.sleep(SHOWN_S)
    (folder / "recording").unlink()
    time.sleep(SHOWN_S)
    found = set()
    for noted in folder.glob(f"{name}.*.json"):
        for file, function in json.loads(noted.read_text()):
            path = Path(file).resolve()
            if path.is_file() and path.is_relative_to(ROOT) and ".venv" not in path.parts:
                found.add((str(path.relative_to(ROOT)), function))
    return found


def key_of(log: Path, up: subprocess.Popen[bytes]) -> str:
    """Wait for the key that the stack prints."""
    while not (found := re.search(r"hr_[\w-]{16,}", log.read_text())):
        if up.poll() is not None:
            sys.exit(log.read_text())
        time.sleep(0.2)
    return found[0]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="walk-") as name:
        folder = Path(name)
        shutil.copy(Path(__file__).with_name("sitecustomize.py"), folder)
        ports = {f"HEADRACE_{of}_PORT": str(free_port("127.0.0.1", 0)) for of in ("API", "FLOWER", "WORKER_METRICS")}
        local = {"HEADRACE_WEBHOOK_ALLOW_HTTP": "true", "HEADRACE_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8"}
        env = child_environment({"PYTHONPATH": name, "HEADRACE_HOME": f"{name}/home", **ports, **local})
        argv = [sys.executable, "-m", "headrace.cli.main", "up", "--model", "fake"]
        log = folder / "up.log"
        with log.open("wb") as out:
            up = subprocess.Popen(argv, env=env, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            key = key_of(log, up)
            url = f"http://127.0.0.1:{ports['HEADRACE_API_PORT']}"
            with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as api:
                chat(api)
                job(api)
                idle = recorded(folder, "idle", partial(time.sleep, 3))
                walks = {
                    what: [recorded(folder, f"{what}{n}", partial(walk, api)) for n in range(3)]
                    for what, walk in (("chat", chat), ("job", job))
                }
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(60)
    for what, runs in walks.items():
        functions = set.intersection(*runs) - idle
        files = sorted({file for file, _ in functions})
        print("\n".join(f"{what}: {file}" for file in files))
        print(f"a {what} enters {len(files)} files, {len(functions)} functions")


if __name__ == "__main__":
    main()
