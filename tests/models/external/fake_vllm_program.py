"""A fake vLLM as a program that a worker starts: ``python THIS -P -m MODULE --model FOLDER --port N …``.

As the real one it has a process beside the one that listens. It writes its arguments and process ids into
``HERE/started``, one start a line. FAKE_VLLM_STEP_S: seconds a token.
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

    async def answer(self, method: str, path: str, body: dict[str, Any], answer: Answer) -> None:
        if path == "/health":
            await answer.send(200, b"")
        else:
            await super().answer(method, path, body, answer)


def main(argv: list[str]) -> None:
    beside = subprocess.Popen(["/bin/sleep", "600"])
    with Path(os.environ["FAKE_VLLM_STARTED"]).open("a") as started:  # noqa: TID251 - see above
        started.write(json.dumps({"argv": argv, "pids": [os.getpid(), beside.pid]}) + "\n")
    sys.stdout.write("loading the model\n")
    if "--fail" in argv:
        beside.kill()
        sys.exit("ValueError: no such model")
    server = ServedVllm(step_s=float(os.environ["FAKE_VLLM_STEP_S"]))  # noqa: TID251 - see above
    server.model = argv[argv.index("--served-model-name") + 1]
    server.port = int(argv[argv.index("--port") + 1])
    server.restart()
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
