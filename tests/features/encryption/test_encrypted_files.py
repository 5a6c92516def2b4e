"""Contents of files under the keys that sealed them."""

import io
from pathlib import Path

import pytest

from headrace.features.encryption.reencryption import file_key_id as key_id
from headrace.features.encryption.vault import Vault
from headrace.features.files.blob_storage import Blobs, FolderBlobs, ObjectBlobs, read_blocks
from headrace.store.errors import CannotOpen
from headrace.store.seal import PLAIN, Seal
from tests.features.files.test_blob_storage import CONTENT, put


@pytest.mark.parametrize("kind", ["folder", "objects"])
def test_a_content_names_the_key_that_seals_it(tmp_path: Path, kind: str) -> None:
    def storage(seal: Seal) -> Blobs:
        return FolderBlobs(tmp_path, seal) if kind == "folder" else ObjectBlobs(f"memory://{tmp_path.name}", seal)

    plain, sealing = storage(PLAIN), storage(Vault({"k1": bytes(32)}))
    digest = put(plain)
    assert (key_id(plain, digest), key_id(sealing, digest)) == ("", "")
    assert b"".join(read_blocks(sealing, digest)) == CONTENT, "as it was stored before there were keys"
    assert put(sealing) == digest
    assert (key_id(plain, digest), key_id(sealing, digest)) == ("k1", "k1"), "the one in plaintext is gone"
    with pytest.raises(CannotOpen, match="'k1'"):
        plain.open(digest)
    newest = storage(Vault({"k2": bytes(range(32)), "k1": bytes(32)}))
    assert key_id(newest, digest) == "k1"
    assert put(newest) == digest
    assert key_id(newest, digest) == "k2"
    with newest.open(digest) as content:
        assert content.seek(-5, io.SEEK_END) == len(CONTENT) - 5
        assert content.read() == b"line\n"
        assert content.seek(65_534) == 65_534
        assert content.read(6) == CONTENT[65_534:65_540]
        assert content.seek(-2, io.SEEK_CUR) == 65_538
        assert content.read(1) == CONTENT[65_538:65_539]
        content.seek(len(CONTENT) + 1)
        assert content.read(1) == b""
    newest.remove(digest)
