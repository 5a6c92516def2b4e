"""Encryption at rest: envelope encryption of columns and files, and keyed digests.

The keys come from the settings; key rotation is in ``store.key_rotation``."""
