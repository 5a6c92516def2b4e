"""The seal of encryption. A process without keys imports no library of it."""

from importlib import import_module

from headrace.features.encryption.master_key_check import check_keys
from headrace.features.encryption.master_keys import keys_of
from headrace.store.db.seal_part import SealPart
from headrace.store.seal import Seal
from headrace.store.settings import Settings


def _open(settings: Settings) -> Seal | None:
    keys = keys_of(settings)
    if not keys:
        return None
    seal: Seal = import_module("headrace.features.encryption.vault").Vault(keys)
    return seal


PART = SealPart(_open, check_keys)
