"""The neural models: what decides (``engine``), what computes (``families``), and how weights become tokens."""
