"""The events of one job for one subscriber, from any cursor.

Frames come from ``store.streams``; each API encodes the events in its own format."""
