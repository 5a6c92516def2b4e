"""The master keys of the settings. Without keys no process imports the libraries of encryption."""

import base64
import os
import re
from pathlib import Path

from headrace.store.errors import SettingsError
from headrace.store.settings import Settings

KEY_BYTES = 32

_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")


def keys_of(settings: Settings) -> dict[str, bytes]:
    """Return the keys of the settings by their ids. Raises SettingsError if they are malformed or cannot be read."""
    keys = parse_keys(settings.encryption_keys, "HEADRACE_ENCRYPTION_KEYS")
    if settings.encryption_key_file is not None:
        if keys:
            raise SettingsError("give HEADRACE_ENCRYPTION_KEYS or HEADRACE_ENCRYPTION_KEY_FILE, not both")
        keys = _keys_in(settings.encryption_key_file)
    return keys


def _keys_in(path: Path) -> dict[str, bytes]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text"
        raise SettingsError(f"HEADRACE_ENCRYPTION_KEY_FILE: cannot read {path}: {reason}") from None
    keys = parse_keys(text, "HEADRACE_ENCRYPTION_KEY_FILE")
    if not keys:
        raise SettingsError(f"HEADRACE_ENCRYPTION_KEY_FILE: {path} has no keys")
    return keys


def parse_keys(text: str, setting: str) -> dict[str, bytes]:
    """Parse ``id:base64`` entries, separated by commas or lines. Raises SettingsError, which quotes no key."""
    keys: dict[str, bytes] = {}
    for number, entry in enumerate(filter(None, (part.strip() for part in re.split(r"[,\n]", text))), 1):
        key_id, colon, encoded = entry.partition(":")
        if not (colon and _KEY_ID.fullmatch(key_id)):
            raise SettingsError(
                f"{setting}: entry {number} is not ID:KEY, with 1 to 32 letters, digits, - or _ as its id"
            )
        if key_id in keys:
            raise SettingsError(f"{setting}: the id {key_id} is used twice")
        keys[key_id] = _key(encoded, f"{setting}: the key {key_id}")
    return keys


def _key(encoded: str, what: str) -> bytes:
    try:
        key = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise SettingsError(f"{what} is not base64: make one with `headrace encryption new-key`") from None
    if len(key) != KEY_BYTES:
        raise SettingsError(
            f"{what} has {len(key)} bytes, not {KEY_BYTES}: make one with `headrace encryption new-key`"
        )
    return key


def new_key() -> str:
    """Return a new master key in base64, the form of the setting."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()
