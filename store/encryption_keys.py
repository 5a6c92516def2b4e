"""Opens the vault, and what makes digests, with the keys of the settings."""

from pathlib import Path

from headrace.store.encryption.keyed_digests import Digests
from headrace.store.encryption.vault import Vault, parse_keys
from headrace.store.errors import SettingsError
from headrace.store.settings import Settings


def open_vault(settings: Settings) -> Vault:
    """Return the vault of the settings' keys; raise SettingsError if the key file cannot be read or is malformed."""
    keys = parse_keys(settings.encryption_keys, "HEADRACE_ENCRYPTION_KEYS")
    if settings.encryption_key_file is not None:
        if keys:
            raise SettingsError("give HEADRACE_ENCRYPTION_KEYS or HEADRACE_ENCRYPTION_KEY_FILE, not both")
        keys = _keys_of(settings.encryption_key_file)
    return Vault(keys)


def open_digests(settings: Settings, vault: Vault) -> Digests:
    """Return what makes digests with the settings' keys, and with those that are derived from the vault's."""
    return Digests([*(key.encode() for key in settings.digest_keys), *vault.digest_keys()])


def _keys_of(path: Path) -> dict[str, bytes]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text"
        raise SettingsError(f"HEADRACE_ENCRYPTION_KEY_FILE: cannot read {path}: {reason}") from None
    keys = parse_keys(text, "HEADRACE_ENCRYPTION_KEY_FILE")
    if not keys:
        raise SettingsError(f"HEADRACE_ENCRYPTION_KEY_FILE: {path} has no keys")
    return keys
