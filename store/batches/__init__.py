"""Batches in the database: the operations of their owner, and the state transitions of the batch keeper.

Input files are parsed, and lines made jobs, in ``producer_api.batches``."""
