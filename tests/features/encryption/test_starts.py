"""A process with another key than the recorded one does not start, and one without keys has no encryption loaded."""

import subprocess
import sys
from contextlib import closing

import pytest

from headrace.features.encryption.master_keys import new_key
from headrace.features.encryption.vault import Vault
from headrace.store.db.database import Database
from headrace.store.db.seal_part import check_seal
from headrace.store.errors import SettingsError
from headrace.store.settings import Settings
from headrace.workers.dispatcher.dispatcher import Dispatcher
from tests.processes import StartProcess
from tests.producer_api.serving import environment, start_api

_LOADED = """
import sys
from headrace.producer_api.app import create_app
from headrace.store.settings import Settings
create_app(Settings(database_url="postgresql://localhost/x", redis_url="redis://localhost"))
print("headrace.features.encryption.vault" in sys.modules)
"""


@pytest.fixture
def other_key(db: Database) -> str:
    """Another key under an id that is in use."""
    db.seal = Vault({"k1": bytes(32)})
    check_seal(db)
    return f"k1:{new_key()}"


@pytest.mark.full
def test_an_api_with_another_key_of_a_known_id_ends(
    settings: Settings, other_key: str, start_process: StartProcess
) -> None:
    process = start_api(start_process, environment(settings, HEADRACE_ENCRYPTION_KEYS=other_key))
    assert process.wait_exit() == 1
    assert "'k1'" in process.log()


def test_a_dispatcher_with_another_key_of_a_known_id_ends(settings: Settings, other_key: str) -> None:
    with (
        closing(Dispatcher(settings.model_copy(update={"encryption_keys": other_key}))) as dispatcher,
        pytest.raises(SettingsError, match="'k1' is another"),
    ):
        dispatcher.run()


def test_a_process_without_keys_loads_no_encryption() -> None:
    loaded = subprocess.run([sys.executable, "-c", _LOADED], capture_output=True, text=True, check=True)
    assert loaded.stdout == "False\n"
