"""The whole queue path: HTTP submit, queue, worker, stream, stored result. ``python -m …on_path MODEL DTYPE``.

The stack is that of ``headrace up``, started anew for another number of slots. A client follows each job's events and
then asks for the stored result; the last token counts as come when that was read.
"""

import http.client
import json
import sys
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.engine.peers.wire import Ask, Clock, Loaded, Request, in_threads, serve
from headrace.cli.local.stack import Stack, running_stack
from headrace.models.catalog import fetch
from headrace.models.families.model_folder import small_files
from headrace.prompts.tokenizer import Tokenizer, load_tokenizer
from headrace.store.settings import load_settings

_SLOTS = 64
_POOL_TOKENS = 40_960
_UNKNOWN = 0
_READ_S = 600


class _Served:
    """A stack with so many slots, and clients that use it."""

    def __init__(self, model: str, dtype: str) -> None:
        self._settings = load_settings()
        self._model, self._dtype = model, dtype
        self._tokenizer: Tokenizer = load_tokenizer(small_files(fetch(model, self._settings.home / "models")))
        self._stack: Stack | None = None
        self._running = ExitStack()
        self._slots = 0

    def prepare(self, slots: int) -> None:
        """Let a stack with so many slots be there."""
        if slots == self._slots:
            return
        self.stop()
        changes = {
            "HEADRACE_MAX_SLOTS": str(slots),
            "HEADRACE_DTYPE": self._dtype,
            "HEADRACE_KV_POOL_TOKENS": str(_POOL_TOKENS),
            "HEADRACE_TORCH_THREADS": "2",
            "HEADRACE_REQUESTS_PER_MINUTE": "1000000",
            "HEADRACE_TOKENS_PER_MINUTE": "1000000000",
        }
        say = partial(print, file=sys.stderr)
        self._stack = self._running.enter_context(running_stack(self._settings, [self._model], say, changes))
        self._slots = slots

    def stop(self) -> None:
        """End the stack."""
        self._running.close()
        self._stack = None

    def pids(self) -> list[int]:
        """Return every process of the stack."""
        return [each.pid for each in psutil.Process().children(recursive=True)]

    def follow(self, request: Request, clock: Clock) -> None:
        """Submit a job, read its events until it ends, and then its stored result."""
        body = {
            "model": self._model,
            "input": {"prompt": self._tokenizer.decode(list(request.prompt))},
            "sampling": {"max_tokens": request.max_tokens, "temperature": 0, "ignore_eos": True},
        }
        job = self._call("POST", "/v1/jobs", body)
        for line in self._open("GET", f"/v1/jobs/{job['id']}/events"):
            if line.startswith(b"event: job.delta"):
                clock.note(request.id, [_UNKNOWN])
        stored = self._call("GET", f"/v1/jobs/{job['id']}")
        if stored["status"] != "succeeded" or stored["usage"]["input_tokens"] != len(request.prompt):
            raise SystemExit(f"{stored['id']} is {stored['status']}, its usage {stored.get('usage')}")
        # Not every token made a text of its own.
        missing = stored["usage"]["output_tokens"] - len(clock.outcomes[request.id].token_ids)
        clock.note(request.id, [_UNKNOWN] * max(0, missing))
        clock.outcomes[request.id].times_s[-1] = clock.now_s()

    def _call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._open(method, path, body).read())
        return found

    def _open(self, method: str, path: str, body: object = None) -> http.client.HTTPResponse:
        assert self._stack is not None
        connection = http.client.HTTPConnection(urlsplit(self._stack.api_url).netloc, timeout=_READ_S)
        headers = {"Authorization": f"Bearer {self._stack.api_key}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection.getresponse()


def load(model: str, dtype: str) -> Loaded:
    served = _Served(model, dtype)
    served.prepare(_SLOTS)

    def run(ask: Ask) -> Clock:
        return in_threads(ask, served.follow)

    return Loaded(run, version("headrace"), served.prepare, served.pids, served.stop)


if __name__ == "__main__":
    serve(lambda: load(*sys.argv[1:]))
