"""Runs a command in a pseudo-terminal, as a person sees it."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from tests.processes import wait_for

_CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][A-Z0-9]")


class Terminal:
    """A terminal with one running ``headrace``. ``raw`` is everything that it was sent."""

    def __init__(self, *arguments: str, env: Mapping[str, str], columns: int, rows: int) -> None:
        self.raw = ""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "headrace.cli.main", *arguments],
            # The size is the terminal's, whatever variables say where the tests run.
            env={name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")}
            | {"TERM": "xterm-256color"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        """What was sent, without colours and movements."""
        return _CODES.sub("", self.raw)

    def wait(self, words: str, since: int = 0) -> None:
        """Wait until the words were sent after the first ``since`` characters of ``text``."""
        wait_for(lambda: words in self.text[since:], lambda: f"{words!r} in {self.text[-3000:]!r}")

    def interrupt(self) -> int:
        """Press Ctrl-C; return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.wait_exit()

    def wait_exit(self) -> int:
        """Wait for the end and for the rest of the output; return the exit code."""
        code = self.process.wait(60)
        self._thread.join(20)
        return code

    def close(self) -> None:
        """Kill the command if it still runs."""
        self.process.kill()
        self.process.wait(20)
        self._thread.join(20)
        os.close(self._master)

    def _read(self) -> None:
        decoded = b""
        with suppress(OSError):  # the other end is closed
            while chunk := os.read(self._master, 65_536):
                decoded += chunk
                self.raw = decoded.decode(errors="ignore")


@contextmanager
def terminal(*arguments: str, env: Mapping[str, str], columns: int = 110, rows: int = 40) -> Iterator[Terminal]:
    """Run a command in a terminal of this size."""
    opened = Terminal(*arguments, env=env, columns=columns, rows=rows)
    try:
        yield opened
    finally:
        opened.close()
