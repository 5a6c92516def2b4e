"""Pictures of traces: a small OpenTelemetry collector, and a drawing of what it received (docs/tracing.md)."""
