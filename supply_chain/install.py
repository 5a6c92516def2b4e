"""Installs this checkout into the environment of the Python that runs it: ``python -m supply_chain.install EXTRA``.

With a wheel of Headrace after the extra it installs that, and the newest that it permits instead of what is locked.

Everything that has a lock comes from ``locks/EXTRA.txt`` by its hashes. torch has none, since its build depends on the
machine: uv, which is fetched by its own lock, chooses it among PyTorch's builds. If PyTorch's index gives none, torch
comes from the package index, as CUDA's build. Where uv cannot be fetched, pip does all of it.

It runs before anything is installed, so it needs the standard library alone.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from ast import literal_eval
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
UV = ROOT / "build" / "uv"
_LOCKED = ("--no-deps", "--require-hashes", "--only-binary", ":all:", "--requirement")
_PIP = (sys.executable, "-m", "pip")
_PIP_INSTALL = (*_PIP, "install", "--quiet", "--disable-pip-version-check", "--no-compile")
# uv reads no configuration of pip: the option of pip, the variable that tells uv the same, and what joins a list.
_OF_UV = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
}
# CUDA's build of torch asks for it, to compile kernels on a card: 1 GB.
_FOR_CARDS = "triton"


def uv_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which uv asks the indexes that pip asks. A variable of uv that is set stays."""
    listed = subprocess.run([*_PIP, "config", "list"], env=environment, capture_output=True, text=True, check=True)
    told: dict[str, list[str]] = {}
    # Later ones win, as in pip.
    for section in ("global", "install", ":env:"):
        for option, value in re.findall(rf"(?m)^{section}\.([\w-]+)=(.+)$", listed.stdout):
            told[option] = str(literal_eval(value)).split()
    given = {variable: between.join(told[option]) for option, (variable, between) in _OF_UV.items() if option in told}
    # As pip does: the best of all indexes, not of the first that knows the package.
    return {"UV_INDEX_STRATEGY": "unsafe-best-match"} | given | dict(environment)


def _uv() -> Path | None:
    """Return uv's program, fetched if it is not there; None where it has no wheel or cannot be fetched."""
    (pin,) = re.findall(r"(?m)^uv==.*\n(?:    --hash=.*\n)+", (ROOT / "locks" / "tools.txt").read_text())
    done = UV / "installed.txt"
    if not done.is_file() or done.read_text() != pin:
        shutil.rmtree(UV, ignore_errors=True)
        UV.mkdir(parents=True)
        (lock := UV / "lock.txt").write_text(pin)
        fetching = [*_PIP_INSTALL, "--target", str(UV), *_LOCKED, str(lock)]
        if subprocess.run(fetching, capture_output=True, check=False).returncode:
            return None
        lock.rename(done)
    return UV / "bin" / "uv"


def _has_card() -> bool:
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    if code := subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode:
        sys.exit(code)


def _with_uv(uv: Path, locked: Sequence[str], wanted: Sequence[str], environment: Mapping[str, str]) -> None:
    environment = uv_environment(environment)
    install = [str(uv), "pip", "install", "--quiet", "--python", sys.executable]
    if locked:
        _run([*install, *locked], environment)
    if importlib.util.find_spec("torch") is None:  # else it stays: somebody may have chosen it
        choosing = [*install, "--torch-backend", "auto", *wanted]
        # Once more is enough for an index that this machine may never reach.
        retried = {"UV_HTTP_RETRIES": "1"} | environment
        done = subprocess.run(choosing, env=retried, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        _say("PyTorch's own index gives no build, so torch comes with CUDA's libraries, some 4 GB:", done.stderr)
    excluded = UV / "excluded.txt"
    excluded.write_text("" if _has_card() else _FOR_CARDS)
    _run([*install, "--excludes", str(excluded), *wanted], environment)


def _say(what: str, output: str = "") -> None:
    """Print a line of progress, with the last line of what a program wrote."""
    why = output.strip().rpartition("\n")[2].strip().removeprefix("cause: ")
    sys.stdout.write(f"==> {what} {why}\n")
    sys.stdout.flush()


def main(extra: str, wheel: str = "") -> None:
    """Install the lock file of the extra, torch, and this checkout; or a wheel with its extra, without the lock.

    Ends the process if one of them fails.
    """
    # setuptools warns that a folder of the same name may be imported instead, which is meant.
    environment = os.environ | {"PYTHONWARNINGS": "ignore:Editable installation"}  # noqa: TID251 - pip's and uv's
    locked: tuple[str, ...] = (*_LOCKED, f"locks/{extra}.txt")
    wanted: tuple[str, ...] = ("--no-build-isolation", "--editable", f".[{extra}]")
    if wheel:
        locked, wanted = (), (f"{wheel}[{extra}]",)
    if (uv := _uv()) is not None:
        _with_uv(uv, locked, wanted, environment)
        return
    _say("uv cannot be fetched, so pip installs all of it: minutes")
    if locked:
        _run([*_PIP_INSTALL, *locked], environment)
    _run([*_PIP_INSTALL, *wanted], environment)


if __name__ == "__main__":
    main(*sys.argv[1:])
