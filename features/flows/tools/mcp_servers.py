"""A session with a registered server of MCP, over HTTP or with a process of the operator's."""

from collections.abc import Mapping
from contextlib import AbstractContextManager

from headrace.features.flows.tools.mcp_client import McpSession, mcp_session
from headrace.features.flows.tools.mcp_stdio import CommandUnknown, mcp_process
from headrace.features.flows.tools.tool_definition import McpEndpoint
from headrace.store.calls.ssrf_guard import GuardedClient
from headrace.store.mcp_commands import Commands, parse_commands
from headrace.store.settings import Settings


class McpServers:
    """Begins sessions. Safe to use from many threads."""

    def __init__(self, client: GuardedClient, commands: Commands) -> None:
        self._client, self._commands = client, commands

    def session(
        self, server: McpEndpoint, timeout_s: float, more: Mapping[str, str] | None = None
    ) -> AbstractContextManager[McpSession]:
        """Return a session with a server, which ends behind its block.

        ``more``: headers of ours. Raises CommandUnknown; inside: CallFailed, McpRefused, McpStatus.
        """
        if server.url is not None:
            return mcp_session(self._client, server.url, {**(more or {}), **server.headers}, timeout_s)
        command = self._commands.get(server.command or "")
        if command is None:
            raise CommandUnknown(f"the operator has no command {server.command}")
        return mcp_process(command, timeout_s)


def servers_of(settings: Settings, client: GuardedClient) -> McpServers:
    """Return the servers that settings allow."""
    return McpServers(client, parse_commands(settings.mcp_commands))
