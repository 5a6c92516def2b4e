"""Calls to addresses that tenants named: guarded and bounded, the protocol of MCP over them, and their approvals."""
