"""Rotation of master keys: the check that a key id still names the same key, and re-encryption under a newer key.

Encryption itself is in ``store.encryption``."""
