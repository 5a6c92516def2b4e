"""Calls to addresses that tenants named: guarded and bounded, and the protocol of MCP over them."""
