"""The folder of a stack: one owner, private files, and no trust in stale files."""

import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cli.local.folders import private_folder, socket_folder
from headrace.cli.local.home import Home, StackRecord, find_home
from headrace.store.errors import SettingsError, Unavailable
from headrace.store.ports import free_port
from headrace.store.settings import Settings
from tests import processes

PRIVATE = 0o700
RECORD = StackRecord(database_url="d", redis_url="r", api_url="http://a", flower_url="http://f", models=["m"])


def test_one_stack_at_a_time_and_the_second_is_told_who(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with home.locked():
        home.write_record(RECORD)
        other = Home(tmp_path)
        assert other.running() == RECORD
        with (
            pytest.raises(Unavailable, match=rf"{RECORD.pid}.*http://a\b"),
            other.locked(),
        ):
            pass
    assert home.running() is None
    assert home.record() == RECORD
    with home.locked():
        assert other.running() is None, "the record of the stack before is not taken for one that starts"


def test_the_lock_ends_with_the_process_that_held_it(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from headrace.cli.local.home import Home\n"
        "with Home(Path(sys.argv[1])).locked(): os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, timeout=processes.WAIT_S)
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
    with pytest.raises(Unavailable, match="HEADRACE_HOME"), Home(tmp_path / "file").locked():
        pass


def test_a_folder_is_shut_to_others_and_anything_else_of_its_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    for folder in (tmp_path / "open", tmp_path / "new" / "below"):
        assert private_folder(folder, None) == folder
        assert stat.S_IMODE(folder.stat().st_mode) == PRIVATE
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(Unavailable, match=r"/link .*\d+.*HEADRACE_HOME"):
        private_folder(tmp_path / "link", None)


def test_a_socket_has_its_folder_up_to_the_longest_path_of_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.cli.local.folders.tempfile.gettempdir", lambda: str(tmp_path))
    name = "x.sock"
    fits = tmp_path / ("d" * (107 - len(str(tmp_path)) - len(name) - 2))
    assert len(str(fits / name)) == 107
    assert socket_folder(fits, name, None) == fits
    elsewhere = socket_folder(fits.with_name(f"{fits.name}d"), name, None)
    assert (elsewhere != fits, len(str(elsewhere / name)) <= 107) == (True, True)
    other = socket_folder(fits.with_name(f"{fits.name}e"), name, None)
    assert other != elsewhere, "each home has its own"
    for made in (elsewhere, other):
        made.rmdir()


def test_a_taken_port_is_replaced_and_a_free_one_kept() -> None:
    # Not one of the system's choice, which may give it to an outgoing connection meanwhile.
    taken = processes.free_port()
    with socket.create_server(("127.0.0.1", taken)):
        # Above are the ports of outgoing connections.
        assert 31_000 <= free_port("127.0.0.1", taken) < 32_768
    assert free_port("127.0.0.1", taken) == taken
    with (
        socket.create_server(("127.0.0.1", taken)) as listener,
        socket.create_connection(("127.0.0.1", taken)) as client,
    ):
        listener.accept()[0].close()
        assert client.recv(1) == b""
    assert free_port("127.0.0.1", taken) == taken, "a closed connection lingers there, and nothing listens"
    with pytest.raises(OSError, match="assign"):
        free_port("192.0.2.1", taken)  # for documents: no interface has it


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for pointers of this user, and a current folder without a stack."""
    pointers, folder = tmp_path / "run", tmp_path / "elsewhere"
    pointers.mkdir(mode=PRIVATE)
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(pointers))
    monkeypatch.setattr("headrace.cli.local.home.tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("HEADRACE_HOME", raising=False)
    monkeypatch.chdir(folder)
    return pointers / "headrace"


def test_the_one_stack_that_runs_is_found_from_anywhere(tmp_path: Path, elsewhere: Path) -> None:
    first, second = Home(tmp_path / "first"), Home(tmp_path / "second")
    with first.locked():
        with first.pointed_to():
            assert find_home(Settings()).path == first.path
            assert find_home(Settings(home=second.path)).path == second.path, "one that is named goes first"
            with second.locked(), second.pointed_to(), pytest.raises(SettingsError, match="several stacks") as raised:
                find_home(Settings())
            assert all(str(home.path) in raised.value.message for home in (first, second))
            with Home(Path(".headrace")).locked():
                assert find_home(Settings()).path == Path.cwd() / ".headrace", "then the one of this folder"
        assert list(elsewhere.iterdir()) == []
        assert find_home(Settings()).path == Path.cwd() / ".headrace"


def test_a_pointer_that_a_killed_stack_left_is_ignored_and_cleared(tmp_path: Path, elsewhere: Path) -> None:
    killed, alive = Home(tmp_path / "killed"), Home(tmp_path / "alive")
    with killed.locked(), killed.pointed_to():
        (left,) = elsewhere.iterdir()
        content = left.read_bytes()
    left.write_bytes(content)
    (elsewhere / "junk").write_bytes(b"\0\xff")
    assert find_home(Settings()).path == Path.cwd() / ".headrace"
    with alive.locked(), alive.pointed_to():
        assert find_home(Settings()).path == alive.path
        assert len(list(elsewhere.iterdir())) == 1


@pytest.mark.parametrize("spoil", ["open", "link", "foreign"])
def test_a_folder_that_others_could_have_filled_is_not_believed(
    tmp_path: Path, elsewhere: Path, spoil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "home")
    with home.locked(), home.pointed_to():
        if spoil == "open":
            elsewhere.chmod(0o770)
        elif spoil == "link":
            elsewhere.rename(tmp_path / "real")
            elsewhere.symlink_to(tmp_path / "real")
        else:
            monkeypatch.setattr("headrace.cli.local.home.os.geteuid", lambda: 4711)
        assert find_home(Settings()).path == Path.cwd() / ".headrace"


def test_without_a_runtime_folder_it_is_one_in_the_temporary_folder(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.cli.local.home.runtime_folder", lambda: tmp_path / "none")
    home = Home(tmp_path / "home")
    with home.locked(), home.pointed_to():
        (folder,) = tmp_path.glob("headrace-*")
        assert stat.S_IMODE(folder.stat().st_mode) == PRIVATE
        assert find_home(Settings()).path == home.path
    # If another user's file has the name, there is no pointer and no error.
    folder.rmdir()
    folder.touch()
    with home.locked(), home.pointed_to():
        assert find_home(Settings()).path == Path.cwd() / ".headrace"
