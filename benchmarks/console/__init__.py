"""``python -m benchmarks.console``: the console in a real browser, how fast it is and what it costs the API."""
