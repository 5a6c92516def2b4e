"""Environments for the peers, one each, made on first use under ``build/bench-venvs`` with ordinary pip."""

import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

FOLDER = Path("build/bench-venvs")

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "celery": (
        "fastapi",
        "uvicorn[standard]",
        "celery[redis]>=5.7,<5.8",
        "sqlalchemy>=2,<3",
        "psycopg[binary,pool]>=3",
    ),
    # celery-batches does not work with 5.7.
    "batches": ("fastapi", "uvicorn[standard]", "celery[redis]<5.7", "celery-batches"),
    "bentoml": ("bentoml",),
    "litserve": ("litserve",),
    "ray": ("ray[serve]", "celery[redis]"),
}
_SHOWN = frozenset({"celery", "celery-batches", "fastapi", "uvicorn", "redis", "bentoml", "litserve", "ray"})
_INSTALL_S = 900


class CannotInstall(Exception):
    """A peer could not be installed; the message is pip's."""


def environment(name: str, say: Callable[[str], None]) -> Path:
    """Return the environment's ``bin`` folder, making it if need be. Raises CannotInstall."""
    folder = FOLDER.absolute() / name
    # Named for what was asked for, so that changed requirements are installed.
    stamp = folder / f".installed-{zlib.crc32(repr(REQUIREMENTS[name]).encode())}"
    if not stamp.exists():
        say(f"installing {', '.join(REQUIREMENTS[name])} (once)")
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS[name]])
        stamp.touch()
    return folder / "bin"


def versions(name: str) -> dict[str, str]:
    """Return the versions that pip chose of the packages that matter."""
    said = _run([str(FOLDER.absolute() / name / "bin/pip"), "list", "--format", "json", "--disable-pip-version-check"])
    return {each["name"]: each["version"] for each in json.loads(said) if each["name"].lower() in _SHOWN}


def _run(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CannotInstall(f"{argv[1:3]} took over {_INSTALL_S} s") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise CannotInstall(said[-1] if said else f"exit {done.returncode}")
    return done.stdout
