"""A task of its own package that takes a picture and makes files."""
