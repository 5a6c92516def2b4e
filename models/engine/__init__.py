"""The engine: decides what runs together, step by step. Standard library only; it never sees a tensor."""
