"""``make chaos-compare``: the same load and the same faults against stock Celery and Headrace, side by side."""
