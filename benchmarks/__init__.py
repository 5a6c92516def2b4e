"""Programs that measure. Each compares within one run, because machines are noisy; none is a test."""
