"""Batches: routes, reading and checking input files, and the keeper that turns lines into jobs and collects results.

The rows are ``store.batches``."""
