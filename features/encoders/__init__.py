"""Tasks of texts and images on encoders: a folder each, beside what they share."""
