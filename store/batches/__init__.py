"""Batches as rows: what their owner may do with them, and the transitions that the batch keeper makes.

Reading input files and turning lines into jobs is ``producer_api.batches``."""
