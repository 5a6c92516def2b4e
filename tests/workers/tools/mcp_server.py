"""Servers of MCP, made with the package ``mcp``: ``python -m tests.workers.tools.mcp_server``.

It prints two ports. Behind the first are sessions and streams of events, behind the second JSON without sessions.
"""

import asyncio
import socket

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError


def add(a: int, b: int) -> str:
    """Adds two numbers."""
    return f"{a} and {b} are {a + b}"


def fail(why: str) -> str:
    """Fails."""
    raise ToolError(f"not today: {why}")


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
    asyncio.run(main())
