"""Typed contents of jobs: requests, payloads and outputs. The submitted and the stored form are the same.

This package uses no database."""
