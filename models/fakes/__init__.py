"""Runners and encoders without weights and without torch, for demonstrations, load and tests; and injected faults."""
