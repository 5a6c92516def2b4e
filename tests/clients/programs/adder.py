"""A server of MCP that the tenant has registered, for programs whose clients let the server call its tools."""

import os
from typing import Any

SUM = "What is two and three?"
ANSWER = r"(-?\d+) and (-?\d+) are (-?\d+)"
"""What its tool ``add`` returns."""


def adder(**more: object) -> dict[str, Any]:
    """Return the tool of the Responses API for it."""
    url = os.environ["MCP_URL"]
    return {"type": "mcp", "server_label": "adder", "server_url": url, "allowed_tools": ["add"], **more}
