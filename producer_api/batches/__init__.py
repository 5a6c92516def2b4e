"""Batches: routes, input files, and the keeper thread that turns input lines into jobs and collects their results.

The tables and their queries are in ``store.batches``."""
