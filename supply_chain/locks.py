"""The lock files: every dependency's exact version, with the hashes of all its files. ``python -m supply_chain.locks``.

    control.txt   the image without torch          worker.txt   the worker's image, without torch and its packages
    local.txt     what ``make demo`` installs      torch.txt    torch and its libraries for accelerators, for an image
    dev.txt       what ``make test`` installs      tools.txt    programs of ``make lock`` and similar targets

They are for every platform: a package for one platform only has a marker. torch has its own file, because the right
build depends on the machine: ``supply_chain.install`` lets uv choose it. No file names an index.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "locks"

EXTRAS = {
    "control": ("api", "audio", "flower", "s3", "otel"),
    "worker": ("worker", "s3", "otel", "retrieval"),
    "local": ("local",),
    "dev": ("dev",),
}
# A dependency group in pyproject.toml that is not part of the project.
TOOLS = "tools"
# Packages that only torch needs, by name.
_TORCH = re.compile(r"torch|triton|nvidia-.+|cuda-.+")
_HEADER = "# Written by `make lock`: do not edit.\n"
_PIN = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[^\s;\\]+)(?: ; (?P<marker>[^\\]+?))?(?: \\)?")
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}(?: \\)?")


class LockError(Exception):
    """A lock file is missing or wrong. The message has the remedy."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One locked package. ``num_hashes`` counts its files for all platforms."""

    name: str
    version: Version
    marker: Marker | None
    num_hashes: int


def pins(text: str) -> list[Pin]:
    """Return the pins of a lock file. Raises LockError at any other line, such as the address of an index."""
    found: list[Pin] = []
    for line in text.splitlines():
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        if pin := _PIN.fullmatch(words):
            marker = Marker(pin["marker"]) if pin["marker"] else None
            found.append(Pin(canonicalize_name(pin["name"]), Version(pin["version"]), marker, 0))
        elif found and _HASH.fullmatch(words):
            last = found.pop()
            found.append(Pin(last.name, last.version, last.marker, last.num_hashes + 1))
        else:
            raise LockError(f"a lock file has pins and hashes alone, not {words!r}: run `make lock`")
    return found


def wanted(project: dict[str, Any], name: str) -> list[Requirement]:
    """Return what pyproject.toml asks for in a lock file: its own, the build's, and through extras of extras."""
    if name == TOOLS:
        return [Requirement(line) for line in project["dependency-groups"][TOOLS]]
    table = project["project"]
    found = [Requirement(line) for line in (*table["dependencies"], *project["build-system"]["requires"])]
    left, seen = list(EXTRAS[name]), set[str]()
    while left:
        if (extra := left.pop()) in seen:
            continue
        seen.add(extra)
        for requirement in map(Requirement, table["optional-dependencies"][extra]):
            if requirement.name == table["name"]:
                left += requirement.extras
            else:
                found.append(requirement)
    return found


def complaints(project: dict[str, Any], texts: dict[str, str]) -> Iterator[str]:
    """Yield a sentence for everything in which the lock files and pyproject.toml disagree; ``texts`` are by set."""
    locked = {name: {pin.name: pin for pin in pins(text)} for name, text in texts.items()}
    for name, found in locked.items():
        for pin in found.values():
            if not pin.num_hashes:
                yield f"locks/{name}.txt: {pin.name} has no hash"
            if name != "torch" and _TORCH.fullmatch(pin.name):
                yield f"locks/{name}.txt: {pin.name} belongs in torch.txt"
            other = pin if name == TOOLS else locked["dev"].get(pin.name, pin)
            if pin.version != other.version:
                yield f"locks/{name}.txt: {pin.name} is {pin.version}, in dev.txt {other.version}"
    for name in (*EXTRAS, TOOLS):
        for requirement in wanted(project, name):
            key = canonicalize_name(requirement.name)
            place = "torch" if _TORCH.fullmatch(key) else name
            there = locked[place].get(key)
            if there is None:
                yield f"locks/{place}.txt lacks {requirement.name}, which pyproject.toml asks for"
            elif not requirement.specifier.contains(there.version, prereleases=True):
                yield f"locks/{place}.txt: {key} is {there.version}, pyproject.toml asks for {requirement.specifier}"


def read_project() -> dict[str, Any]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def read_locks() -> dict[str, str]:
    """Return the lock files' texts by set. Raises LockError if one is missing."""
    try:
        return {name: (FOLDER / f"{name}.txt").read_text() for name in (*EXTRAS, "torch", TOOLS)}
    except FileNotFoundError as error:
        raise LockError(f"{error.filename} is missing: run `make lock`") from error


def check() -> None:
    """Raise LockError if the lock files and pyproject.toml disagree. Asks no index."""
    found = list(complaints(read_project(), read_locks()))
    if found:
        raise LockError("\n".join([*found, "run `make lock`"]))


def write(uv: Path, *, upgrade: bool) -> None:
    """Resolve every set with uv and write the lock files; pins that still fit stay, unless ``upgrade``."""
    FOLDER.mkdir(exist_ok=True)
    # dev first: it has nearly everything, and the others take its versions.
    dev = _compile(uv, "dev", after=None, upgrade=upgrade)
    _write("dev", [block for block in _blocks(dev) if not _is_torch(block)])
    for name in ("control", "worker", "local"):
        blocks = _blocks(_compile(uv, name, after=FOLDER / "dev.txt", upgrade=upgrade))
        _write(name, [block for block in blocks if not _is_torch(block)])
        if name == "worker":
            _write("torch", [block for block in blocks if _is_torch(block)])
    _write(TOOLS, _blocks(_compile(uv, TOOLS, after=None, upgrade=upgrade)))


def _compile(uv: Path, name: str, *, after: Path | None, upgrade: bool) -> str:
    """Return what uv resolves for a lock file, with hashes and markers for every platform."""
    command = [str(uv), "pip", "compile", "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    if name == TOOLS:
        command += ["--group", TOOLS]
    else:
        command += ["pyproject.toml", "-", *(word for extra in EXTRAS[name] for word in ("--extra", extra))]
    command += ["--constraint", str(after)] if after else []
    # uv keeps the pins of the file that it is to write over.
    before = [path for path in (FOLDER / f"{name}.txt", FOLDER / "torch.txt") if path.exists() and not upgrade]
    scratch = ROOT / "build" / f"{name}.txt"
    scratch.parent.mkdir(exist_ok=True)
    scratch.write_text("".join(path.read_text() for path in before))
    build = "\n".join(read_project()["build-system"]["requires"])
    done = subprocess.run(
        [*command, "--output-file", str(scratch)], input=build, capture_output=True, text=True, cwd=ROOT, check=False
    )
    if done.returncode:
        raise LockError(f"uv cannot resolve {name}: {done.stderr.strip()}")
    return scratch.read_text()


def _blocks(text: str) -> list[str]:
    """Return a lock file's pins, each with its hashes."""
    return [block for block in re.split(r"(?m)^(?=[^\s#])", text) if block and not block.startswith("#")]


def _is_torch(block: str) -> bool:
    return _TORCH.fullmatch(block.partition("==")[0]) is not None


def _write(name: str, blocks: Sequence[str]) -> None:
    (FOLDER / f"{name}.txt").write_text(_HEADER + "".join(blocks))


def main(argv: list[str] | None = None) -> int:
    """Check the lock files, or write them with ``write --uv PATH``; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m supply_chain.locks", description="Lock files.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("check", help="do the lock files have all that pyproject.toml asks for? Needs no network")
    writing = verbs.add_parser("write", help="resolve and write them")
    writing.add_argument("--uv", type=Path, required=True, help="uv's program")
    writing.add_argument("--upgrade", action="store_true", help="take the newest of everything")
    options = parser.parse_args(argv)
    try:
        if options.verb == "write":
            write(options.uv, upgrade=options.upgrade)
        check()
    except LockError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
