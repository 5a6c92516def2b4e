"""The engine: it decides, step by step, which requests run together. Standard library only; it never sees a tensor.

Read ``loop`` first: schedule, run, record. The folders hold what the loop asks."""
