"""Calls to addresses that tenants named: guarded and bounded, and their approvals; MCP over them and over stdio."""
