"""``headrace mcp``: a server of MCP whose tools are the deployed models, and whose tasks are jobs."""
