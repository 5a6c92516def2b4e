"""A server of MCP beside the stack, for clients that let the server call its tools."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from openai import OpenAI

from headrace.store.settings import child_environment
from tests.e2e.running import Running

LOCAL = {"HEADRACE_WEBHOOK_ALLOW_HTTP": "true", "HEADRACE_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8"}
"""Settings with which the stack may call a server on this machine."""


@contextmanager
def serving_adder(running: Running) -> Iterator[str]:
    """Yield the address of the server, which is registered as ``adder`` and whose calls a worker of the stack makes."""
    env = child_environment({"HEADRACE_HOME": str(running.home.path), **LOCAL})
    headrace = [sys.executable, "-m", "headrace.cli.main"]
    subprocess.run([*headrace, "register", "tools", "--task", "call_tool"], env=env, check=True, capture_output=True)
    server = [sys.executable, "-m", "tests.features.flows.tools.mcp_server"]
    with (
        subprocess.Popen(server, env=env, stdout=subprocess.PIPE, text=True) as served,
        subprocess.Popen([*headrace, "worker", "--model", "tools"], env=env, stderr=subprocess.DEVNULL) as worker,
    ):
        try:
            assert served.stdout is not None
            found = re.match(r"ports=(\d+),", served.stdout.readline())
            assert found is not None
            url = f"http://127.0.0.1:{found[1]}/mcp"
            with OpenAI(base_url=f"{running.stack.api_url}/v1", api_key=running.stack.api_key) as client:
                registered = {"name": "adder", "type": "mcp", "url": url, "timeout_ms": 60_000}
                client.post("/tools", body=registered, cast_to=dict[str, object])
            yield url
        finally:
            for process in (served, worker):
                process.terminate()
