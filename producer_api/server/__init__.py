"""The generic parts of the HTTP server: errors and their status, server-sent events, health, the loop's lag.

Nothing in here knows the runtime."""
