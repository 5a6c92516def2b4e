"""Environments for third-party clients, one each under ``build/clients``, created once with pip or npm.

Each has a file in ``requirements``; a changed file recreates the environment.
"""

import shutil
import sys
import zlib
from pathlib import Path

from benchmarks.venvs import CannotInstall, Say, run

FOLDER = Path("build/clients")
_REQUIREMENTS = Path(__file__).parent / "requirements"


def python_with(name: str, say: Say) -> Path:
    """Return the interpreter of the environment ``name``. Raises CannotInstall."""
    folder, wanted = FOLDER.absolute() / name, _REQUIREMENTS / f"{name}.txt"
    stamp = _stamp(folder, wanted)
    if not stamp.exists():
        say(f"installing {', '.join(wanted.read_text().split())} (once)")
        shutil.rmtree(folder, ignore_errors=True)
        run([sys.executable, "-m", "venv", str(folder)], say)
        pip = [str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, "--requirement", str(wanted)], say)
        stamp.touch()
    return folder / "bin/python"


def node_with(name: str, say: Say) -> Path:
    """Return the folder with Node's packages of the environment ``name``. Raises CannotInstall."""
    folder, wanted = FOLDER.absolute() / name, _REQUIREMENTS / f"{name}.json"
    stamp = _stamp(folder, wanted)
    if not stamp.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise CannotInstall("Node 20 or newer with npm is needed")
        say(f"installing what {wanted.name} names (once)")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(wanted, folder / "package.json")
        run([npm, "install", "--silent", "--no-audit", "--no-fund", "--no-package-lock", "--prefix", str(folder)], say)
        stamp.touch()
    return folder


def _stamp(folder: Path, wanted: Path) -> Path:
    return folder / f".installed-{zlib.crc32(wanted.read_bytes())}"
