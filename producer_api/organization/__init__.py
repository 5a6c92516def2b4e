"""Routes for a tenant's admin: API keys, limits, usage, retention and the audit log.

The operator's commands are in ``cli.operator``."""
