"""A queue in front of an inference server."""
