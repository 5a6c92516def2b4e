"""Servers of MCP, made with the package ``mcp``: ``python -m tests.features.flows.tools.mcp_server``.

It prints two ports. Behind the first are sessions and streams of events, behind the second JSON without sessions. With
``--stdio`` it is a server over stdio.
"""

import asyncio
import json
import socket
import sys
from pathlib import Path

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError


def add(a: int, b: int) -> str:
    """Adds two numbers."""
    return f"{a} and {b} are {a + b}"


def fail(why: str) -> str:
    """Fails."""
    raise ToolError(f"not today: {why}")


def surroundings() -> str:
    """Tells the variables of the process, and the files of its folder."""
    given = Path("/proc/self/environ").read_text().rstrip("\0").split("\0")
    files = [one.name for one in Path().iterdir()]
    return json.dumps({"variables": sorted(one.partition("=")[0] for one in given), "files": files})


async def serve(listening: socket.socket, *, is_plain: bool) -> None:
    """Serve until the process ends."""
    server = MCPServer("demo", log_level="ERROR")
    for tool in (add, fail):
        server.tool()(tool)
    app = server.streamable_http_app(json_response=is_plain, stateless_http=is_plain)
    await uvicorn.Server(uvicorn.Config(app, log_level="error")).serve(sockets=[listening])


async def main() -> None:
    """Serve both."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        print(f"ports={first.getsockname()[1]},{second.getsockname()[1]};", flush=True)  # noqa: T201 - the test waits for it
        await asyncio.gather(serve(first, is_plain=False), serve(second, is_plain=True))


if __name__ == "__main__":
    if sys.argv[1:] == ["--stdio"]:
        over_stdio = MCPServer("demo", log_level="ERROR")
        for tool in (add, fail, surroundings):
            over_stdio.tool()(tool)
        over_stdio.run()
    else:
        asyncio.run(main())
