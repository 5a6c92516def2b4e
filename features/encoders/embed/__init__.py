"""The task ``embed``: texts or images in, one vector for each out."""
