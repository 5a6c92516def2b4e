"""Tools that the server calls: their registry, and the calls over HTTP and MCP."""
