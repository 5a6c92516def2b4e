"""Master keys over time: the check that a key id still names the same key, and re-encryption under a newer key.

Encrypting itself is ``store.encryption``."""
