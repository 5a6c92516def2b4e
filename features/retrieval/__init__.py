"""Vector stores: files are read into them as passages with vectors, and searched."""
