"""The choice of a seal where no feature has one."""

from pathlib import Path

import pytest

from headrace.store.db import seal_part
from headrace.store.errors import SettingsError
from headrace.store.settings import Settings


@pytest.mark.parametrize("changes", [{"encryption_keys": "k1:x"}, {"encryption_key_file": Path("keys")}])
def test_keys_that_nothing_takes_stop_the_process(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Contents would be stored in plaintext otherwise."""
    monkeypatch.setattr(seal_part, "parts", lambda *_: [])
    assert not seal_part.open_seal(Settings()).is_on
    with pytest.raises(SettingsError):
        seal_part.open_seal(Settings().model_copy(update=changes))
