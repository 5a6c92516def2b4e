"""Encryption at rest: envelope encryption of columns, streams and files, and the rotation of its keys."""
