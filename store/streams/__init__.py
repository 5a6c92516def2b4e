"""Token streams through Redis: writing frames, following them, checkpoints, and fencing of a lost attempt.

The events that a caller sees are made in ``producer_api.streaming``."""
