"""MCP over stdio: a process of the operator's for one session, which is gone behind it with all that it started.

    our thread ──▶ guard ──▶ program      a line of JSON for each message, to its stdin and from its stdout

The process gets nothing of ours: a bare environment, an empty folder, no stderr. Its lines, all that it writes and its
time are bounded. If our thread dies, the kernel tells the guard, which kills the program and its processes.
"""

import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import orjson

from headrace.features.flows.tools.mcp_client import McpAnswer, McpSession
from headrace.store.calls.ssrf_guard import MAX_READ_BYTES, AnswerTooLong, CallFailed, CallTimedOut
from headrace.store.child_process import die_with_parent
from headrace.store.process_guard import NOT_STARTED, ON_PARENT_DEATH, guarded

_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_CHUNK: Final = 65_536
_PATIENCE_S: Final = 1.0
"""After each signal, before the next one is tried."""


class CommandUnknown(CallFailed):
    """The operator has no such command."""


@contextmanager
def mcp_process(
    command: Sequence[str], timeout_s: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[McpSession]:
    """Start a process and begin a session with it; end both behind the block. Raises CallFailed, McpRefused."""
    end = clock() + timeout_s
    with tempfile.TemporaryDirectory(prefix="headrace-mcp-", ignore_cleanup_errors=True) as folder:
        process = _start(command, folder)
        try:
            with _StdioWire(process, lambda: end - clock()) as wire:
                session = McpSession(wire)
                session.initialize()
                yield session
        finally:
            _end(process)


def _start(command: Sequence[str], folder: str) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            guarded(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={"PATH": _PATH, "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder},
            cwd=folder,
            start_new_session=True,
            preexec_fn=die_with_parent(ON_PARENT_DEATH),
        )
    except OSError as error:
        raise CallFailed("the process of the server could not be started") from error


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask the guard to end the program, then to kill it; kill the group if the guard itself does not end."""
    for sent in (signal.SIGTERM, ON_PARENT_DEATH):
        process.send_signal(sent)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE_S)
            return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _StdioWire:
    """Lines to a process and from it, within a deadline."""

    def __init__(self, process: "subprocess.Popen[bytes]", left_s: Callable[[], float]) -> None:
        if process.stdin is None or process.stdout is None:
            raise CallFailed("the process of the server was started without pipes")
        self._process, self._left_s = process, left_s
        self._in, self._out = process.stdin, process.stdout
        self._came = bytearray()
        self._selector = selectors.DefaultSelector()
        for pipe in (self._in, self._out):
            os.set_blocking(pipe.fileno(), False)
        self._selector.register(self._out, selectors.EVENT_READ)

    def __enter__(self) -> "_StdioWire":
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the pipes, by which a server learns that its session is over."""
        self._selector.close()
        self._in.close()
        self._out.close()

    def agreed(self, version: str) -> None:
        """Do nothing: only over HTTP each message names the version."""

    def send(self, message: Mapping[str, Any], most_bytes: int, answer: McpAnswer | None, _key: str | None) -> None:
        """Write a message, and read lines until its answer is in. The key is in the message."""
        unsent = orjson.dumps(message) + b"\n"
        left = most_bytes + MAX_READ_BYTES
        self._selector.register(self._in, selectors.EVENT_WRITE)
        try:
            while unsent:
                ready = self._ready()
                left -= self._read(most_bytes, left, answer) if self._out in ready else 0
                unsent = self._written(unsent) if self._in in ready else unsent
        finally:
            self._selector.unregister(self._in)
        self._take_lines(answer)
        while answer is not None and not answer.is_in:
            self._ready()
            left -= self._read(most_bytes, left, answer)

    def _ready(self) -> list[object]:
        """Wait for a pipe. Raises CallTimedOut."""
        left_s = self._left_s()
        found = self._selector.select(left_s) if left_s > 0 else []
        if not found:
            raise CallTimedOut("timed out")
        return [key.fileobj for key, _events in found]

    def _written(self, unsent: bytes) -> bytes:
        try:
            return unsent[os.write(self._in.fileno(), unsent[:_CHUNK]) :]
        except BlockingIOError:
            return unsent
        except BrokenPipeError:
            raise self._ended() from None

    def _read(self, most_bytes: int, left: int, answer: McpAnswer | None) -> int:
        """Read what is there and return its length. Raises AnswerTooLong, CallFailed at the end of the process."""
        data = os.read(self._out.fileno(), _CHUNK)
        if not data:
            raise self._ended()
        self._came += data
        self._take_lines(answer)
        is_answered = answer is not None and answer.is_in
        if not is_answered and (len(data) > left or len(self._came) > most_bytes):
            raise AnswerTooLong(f"the answer has more than {most_bytes} bytes")
        return len(data)

    def _take_lines(self, answer: McpAnswer | None) -> None:
        """Take the whole lines that have come, if an answer is waited for; leave what follows it."""
        while answer is not None and not answer.is_in and (line_end := self._came.find(b"\n")) >= 0:
            answer.note(bytes(self._came[:line_end]))
            del self._came[: line_end + 1]

    def _ended(self) -> CallFailed:
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(min(max(self._left_s(), 0.0), _PATIENCE_S))
            if code == NOT_STARTED:
                return CallFailed("the process of the server could not be started")
            return CallFailed(f"the process of the server ended with the exit code {code}")
        return CallFailed("the process of the server closed its output")
