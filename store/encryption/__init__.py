"""Encryption at rest: envelope encryption of columns and files, and keyed digests.

Which keys exist comes from the settings; changing keys is ``store.key_rotation``."""
