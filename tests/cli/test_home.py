"""The folder of a stack: one holder, private files, and no trust in what was left behind."""

import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cli.local.home import Home, StackRecord
from cli.local.ports import free_port
from store.errors import Unavailable

RECORD = StackRecord(database_url="d", redis_url="r", api_url="http://a", flower_url="http://f", models=["m"])


def test_one_stack_at_a_time_and_the_second_is_told_who(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with home.locked():
        home.write_record(RECORD)
        other = Home(tmp_path)
        assert other.running() == RECORD
        with (
            pytest.raises(Unavailable, match=rf"pid {RECORD.pid}, API at http://a\) is already running"),
            other.locked(),
        ):
            pass
    assert home.running() is None
    assert home.record() == RECORD
    with home.locked():
        pass


def test_the_lock_ends_with_the_process_that_held_it(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from cli.local.home import Home\n"
        "with Home(Path(sys.argv[1])).locked(): os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, timeout=30)
    assert (tmp_path / "lock").exists()
    with Home(tmp_path).locked():
        pass


def test_keys_and_passwords_are_private_and_kept(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.api_key() is None
    home.write_api_key("hr_1_x")
    password = home.flower_password()
    home.write_record(RECORD)
    assert Home(tmp_path).api_key() == "hr_1_x"
    assert Home(tmp_path).flower_password() == password
    assert len(password) >= 12
    for name in ("api-key", "flower-password", "stack.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_damaged_record_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text("{")
    assert Home(tmp_path).record() is None


def test_a_home_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=r"HEADRACE_HOME .* cannot be used"), Home(tmp_path / "file").locked():
        pass


def test_a_taken_port_is_replaced_and_a_free_one_kept() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        assert free_port("127.0.0.1", taken) not in (0, taken)
    assert free_port("127.0.0.1", taken) == taken
