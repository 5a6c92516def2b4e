"""The command of the server of MCP."""

from headrace.cli.groups import Node, VerbsPart

PART = VerbsPart(
    {
        "mcp": Node(
            "Serve the deployed models as tools of MCP.", "headrace.features.mcp_server.mcp_verb:mcp", panel="Processes"
        )
    }
)
