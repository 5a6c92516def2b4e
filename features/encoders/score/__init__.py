"""The task ``score``: two texts in, one number out. It has no models of its own."""
