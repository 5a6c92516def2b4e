"""The task ``image_edit``: a picture and a prompt in, changed pictures out. It has no models of its own."""
