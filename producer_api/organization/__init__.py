"""What an admin of a tenant manages: API keys, limits, usage, retention, policies, the audit log.

The operator's commands are ``cli.operator``."""
