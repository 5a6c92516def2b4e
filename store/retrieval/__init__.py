"""Vector stores: their files, the passages of these with vectors and words, and the search for passages."""
