"""One contestant's process: started once, asked for runs, idle in between."""

import json
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.engine.peers.wire import Answer, Ask, Request, decode_answer, encode_ask
from benchmarks.engine.quiet import mark
from headrace.store.settings import child_environment

_LOGS = Path("build/engine-logs")
_TAIL_CHARS = 300
_STOP_S = 60


class DoesNotRun(Exception):
    """A contestant did not load or did not answer; the message is its last output."""


class PeerProcess:
    """Speaks ``peers/wire.py`` with a process. Raises DoesNotRun if that does not become ready."""

    def __init__(self, name: str, argv: Sequence[str | Path]) -> None:
        _LOGS.mkdir(parents=True, exist_ok=True)
        self._log = _LOGS / f"{name}.log"
        with self._log.open("w") as log:
            self._child = subprocess.Popen(
                [str(part) for part in argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=child_environment({"OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path.cwd()), **mark()}),
            )
        self.ready: dict[str, Any] = self._read()["ready"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, slots: int, requests: Sequence[Request]) -> Answer:
        """Run the requests. Raises DoesNotRun if the process ends instead of answering."""
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):
            print(encode_ask(Ask(slots, tuple(requests))), file=self._child.stdin, flush=True)
        return decode_answer(self._read())

    def close(self) -> None:
        """End the process by closing its input; kill it if it does not end."""
        if self._child.stdin is None or self._child.stdin.closed:
            return
        try:
            self._child.communicate(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self.close()
            raise DoesNotRun(f"exit {self._child.returncode}: {self._log.read_text()[-_TAIL_CHARS:].strip()}")
        found: dict[str, Any] = json.loads(line)
        return found
