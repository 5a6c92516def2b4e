"""The generic parts of the HTTP server: errors and their status, server-sent events, health, metrics.

Nothing in here knows the runtime."""
