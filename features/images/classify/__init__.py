"""The task ``image_classify``: images in, the scores of a classifier's labels out."""
