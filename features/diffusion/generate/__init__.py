"""The task ``image_generate``: a prompt in, pictures out."""
