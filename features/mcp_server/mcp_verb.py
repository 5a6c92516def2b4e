"""``headrace mcp``: over stdio with the key of this command line, over HTTP with the key of each request."""

import asyncio
import importlib.util
from importlib import import_module
from typing import Annotated

import typer

from headrace.cli.client.verbs import connect
from headrace.store.errors import Unavailable
from headrace.store.settings import load_settings


def mcp(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Serve http://HOST:PORT/mcp; without it: over stdio.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on, with --port.")] = "127.0.0.1",
) -> None:
    """Serve the deployed models as tools of MCP, and their jobs as its tasks (docs/mcp-server.md)."""
    if importlib.util.find_spec("mcp") is None:
        raise Unavailable("`headrace mcp` needs the package mcp: install Headrace with its extra `mcp`")
    model_tools = import_module("headrace.features.mcp_server.model_tools")
    if port is None:
        with connect() as api:
            asyncio.run(model_tools.serve_stdio(api.base_url, api.api_key))
    else:
        model_tools.serve_http(load_settings().api_url or connect().base_url, host, port)
