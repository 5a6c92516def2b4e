"""Throughput of the tasks that generate no text, beside what people use instead."""
