"""The HTTP server without any business: errors and their status, server-sent events, limits of JSON, health, metrics.

Nothing in here knows the runtime."""
