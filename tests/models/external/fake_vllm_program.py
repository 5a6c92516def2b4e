"""A fake vLLM as a program that a worker starts: ``python THIS -P -m MODULE --model FOLDER --port N …``.

As the real one it has a process beside the one that listens. It writes its arguments and process ids into
``HERE/started``, one start a line. FAKE_VLLM_STEP_S: seconds a token. With --enable-sleep-mode it sleeps and wakes, and
writes what it did into ``HERE/slept``; FAKE_VLLM_CANNOT_SLEEP: it refuses that argument, as the build for CPUs does.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.models.external.fake_server import Answer
from tests.models.external.fake_vllm import FakeVllm


class ServedVllm(FakeVllm):
    """Listens on a given port, and asks for a key as the real one does."""

    api_key = os.environ.get("VLLM_API_KEY", "")  # noqa: TID251 - how the real one gets it
    SLEEP = frozenset({("POST", "/sleep?level=1"), ("POST", "/wake_up"), ("GET", "/is_sleeping")})
    can_sleep = os.environ.get("VLLM_SERVER_DEV_MODE") == "1"  # noqa: TID251 - how the real one gets it
    is_asleep = False

    async def answer(self, method: str, path: str, body: dict[str, Any], answer: Answer) -> None:
        if path == "/health":
            await answer.send(200, b"")
        elif self.can_sleep and (method, path) in self.SLEEP:
            await self.sleep(path, answer)
        elif self.is_asleep and method == "POST":
            self.note(f"asked {path} in its sleep")
            await answer.json(500, {"detail": "asleep"})
        else:
            await super().answer(method, path, body, answer)

    async def sleep(self, path: str, answer: Answer) -> None:
        if path == "/is_sleeping":
            await answer.json(200, {"is_sleeping": self.is_asleep})
            return
        self.is_asleep = path.startswith("/sleep")
        self.note(f"{path.partition('?')[0]} with {len(self.running)} requests")
        await answer.send(200, b"")

    def note(self, text: str) -> None:
        with Path(os.environ["FAKE_VLLM_STARTED"]).with_name("slept").open("a") as slept:  # noqa: TID251 - as in main
            slept.write(f"{self.model}: {text}\n")


def main(argv: list[str]) -> None:
    beside = subprocess.Popen(["/bin/sleep", "600"])
    with Path(os.environ["FAKE_VLLM_STARTED"]).open("a") as started:  # noqa: TID251 - see above
        started.write(json.dumps({"argv": argv, "pids": [os.getpid(), beside.pid]}) + "\n")
    sys.stdout.write("loading the model\n")
    if "--fail" in argv:
        beside.kill()
        sys.exit("ValueError: no such model")
    if "--enable-sleep-mode" in argv and "FAKE_VLLM_CANNOT_SLEEP" in os.environ:  # noqa: TID251 - see above
        beside.kill()
        sys.exit("Value error, Sleep mode is not supported on current platform.")
    server = ServedVllm(step_s=float(os.environ["FAKE_VLLM_STEP_S"]))  # noqa: TID251 - see above
    server.model = argv[argv.index("--served-model-name") + 1]
    server.port = int(argv[argv.index("--port") + 1])
    server.restart()
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
