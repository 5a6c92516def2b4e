"""The declarations of all metrics: names, help texts, labels and buckets, one module for each kind of process.

The code that knows a number calls these objects; nothing else imports the Prometheus library. docs/metrics.md is the
table for operators. No label carries a job or a text; tenants only as ``largest`` allows.
"""
