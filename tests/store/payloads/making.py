"""Parts of bodies that several tests of payloads are made of."""

from typing import Any

SOURCE = {
    "vector_store_id": "vs",
    "file_id": "file",
    "filename": "",
    "ticket": "t",
    "num_bytes": 0,
    "chunk_tokens": 1,
    "overlap_tokens": 0,
}
TOOL = {"type": "http", "url": "https://example.com/t"}
MCP = {"type": "mcp", "url": "https://example.com/m"}


def numbered(count: int, value: Any = "") -> dict[str, Any]:
    return {f"k{number}": value for number in range(count)}


def call(call_id: str) -> dict[str, Any]:
    return {"id": call_id, "function": {"name": "f", "arguments": "{}"}}


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(levels):
        found = {"a": found}
    return found
