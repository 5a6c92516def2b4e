"""Keys from the settings: digests and key files."""

from pathlib import Path

import pytest

from headrace.features.encryption.vault import Vault
from headrace.store.db.seal_part import open_seal
from headrace.store.digests import open_digests
from headrace.store.errors import SettingsError
from headrace.store.seal import PLAIN
from headrace.store.settings import Settings


def test_the_digests_of_the_settings_come_before_those_of_the_keys() -> None:
    vault = Vault({"k1": bytes(32)})
    given, derived = Settings(digest_keys=("a" * 32,)), Settings()
    both = open_digests(given, vault).of("p", b"v")
    assert both[1:] == open_digests(derived, vault).of("p", b"v")
    assert both[:1] == open_digests(given, PLAIN).of("p", b"v")
    assert not open_digests(derived, PLAIN).is_keyed


def test_a_key_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe")
    for path, said in (
        (tmp_path / "none", "{}.*No such file"),
        (binary, "{}.*text"),
        (empty, "{}.*no keys"),
    ):
        with pytest.raises(SettingsError, match=f"HEADRACE_ENCRYPTION_KEY_FILE: .*{said.format(path)}"):
            open_seal(Settings(encryption_key_file=path))
