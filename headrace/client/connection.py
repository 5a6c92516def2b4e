"""The options with which both clients open their connections."""

from typing import Any

import httpx2

from headrace.client.answers import host_of

_LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})


def connection_options(base_url: str, api_key: str) -> dict[str, Any]:
    """Return the arguments of ``httpx2.Client`` and ``httpx2.AsyncClient``. Raises InvalidBaseUrl."""
    return {
        "base_url": base_url.rstrip("/"),
        "headers": {"Authorization": f"Bearer {api_key}", "User-Agent": "headrace-client"},
        # A long poll takes up to a minute, and an idle stream sends a ping every 15 s.
        "timeout": httpx2.Timeout(90, connect=5),
        # A proxy of the environment cannot reach this machine's own servers.
        "trust_env": host_of(base_url) not in _LOCAL,
    }
