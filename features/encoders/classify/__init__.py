"""The task ``classify``: texts or pairs of texts in, the scores of a classifier's labels out."""
