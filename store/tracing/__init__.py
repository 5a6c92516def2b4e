"""Traces of jobs for OpenTelemetry (docs/tracing.md): trace contexts, spans as plain data, and their export.

Only ``otlp_export`` imports opentelemetry, and it is imported only while tracing is on.
"""
