"""Checks the licences of all locked packages: ``python -m supply_chain.licences``.

The list (docs/licences.md) is written from the metadata of the packages, which pip-licenses reads. Packages of other
platforms, which this machine cannot install, are declared here. The check needs no network: the list must have the
packages and versions of the lock files, and only permitted licences.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.utils import canonicalize_name

from supply_chain import vendored
from supply_chain.locks import ROOT, LockError, Pin, pins, read_locks

LIST = ROOT / "docs" / "licences.md"

# SPDX names. Weak copyleft (LGPL, MPL) is permitted, because these packages are used unchanged and separate.
_FREE = ("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0")
_FREE_TOO = ("CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-0", "MIT-CMU", "PostgreSQL", "PSF-2.0", "Unlicense", "Zlib")
_WEAK = ("LGPL-2.0-or-later", "LGPL-2.1-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later", "MPL-2.0")
PERMITTED = frozenset((*_FREE, *_FREE_TOO, *_WEAK))
# For programs of the tests and the make targets, which are not part of a release.
_BESIDE = frozenset({"GPL-2.0-only"})
# Not free and optional: NVIDIA's own terms, in the image for NVIDIA devices only.
NVIDIA = "LicenseRef-NVIDIA"

# SPDX names by the names in classifiers and older metadata fields.
_SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "LicenseRef-NVIDIA-Proprietary": NVIDIA,
    "NVIDIA Proprietary Software": NVIDIA,
}
# Classifiers that name no licence.
_NO_LICENCE = frozenset({"DFSG approved", "OSI Approved"})
# Read from the packages by hand: for other platforms, or without a licence in the metadata.
_DECLARED = {
    "async-timeout": "Apache-2.0",
    "colorama": "BSD-3-Clause",
    "cuda-pathfinder": "Apache-2.0",
    "httpx2-jsfetch": "BSD-3-Clause",
    "pip-licenses": "MIT",
    "prettytable": "BSD-3-Clause",
    "tld": "LGPL-2.1-or-later",  # one of three to choose from
    "pywin32": "PSF-2.0",
    "triton": "MIT",
}

_LINE = re.compile(r"- ([^:]+): (.+)")
_HEADER = """# Licences

Everything that is locked, by its licence as its own metadata says it. Written by `make licences`; `make check` holds it
against the lock files and `supply_chain/licences.py`, which has the list of what is permitted.
"""
_RELEASED = frozenset({"control", "worker", "torch"})
"""The lock files of what a release installs; the others are for development."""


def normalised(said: str) -> str:
    """Return a licence as an SPDX expression. Several licences in classifiers are joined by AND."""
    parts = [part.strip() for part in said.split(";")]
    return " AND ".join(_SPDX.get(part, part) for part in parts if part not in _NO_LICENCE)


def forbidden(licence: str) -> list[str]:
    """Return the parts of a licence expression that are not permitted. Of a choice, each part must be permitted."""
    parts = re.split(r"\s+(?:AND|OR)\s+", licence.replace("(", " ").replace(")", " ").strip())
    return [part.strip() for part in parts if part.strip() not in PERMITTED]


def locked() -> dict[str, tuple[Pin, list[str]]]:
    """Return every locked package with the lock files that have it."""
    found: dict[str, tuple[Pin, list[str]]] = {}
    for name, text in read_locks().items():
        for pin in pins(text):
            found.setdefault(pin.name, (pin, []))[1].append(name)
    return dict(sorted(found.items()))


def read_list(text: str) -> dict[str, tuple[str, str]]:
    """Return the version and the licence of each package in the list."""
    found = {}
    for line in text.splitlines():
        if row := _LINE.fullmatch(line):
            for each in row[2].split(", "):
                name, _, version = each.partition(" ")
                found[name] = (version, row[1])
    return found


def complaints(text: str) -> Iterator[str]:
    """Yield a sentence for each error in the list."""
    listed = read_list(text)
    wanted = locked()
    for name in sorted(set(listed) ^ set(wanted)):
        yield f"{name} is {'not locked' if name in listed else 'missing'}"
    for name, (pin, files) in wanted.items():
        if name not in listed:
            continue
        version, licence = listed[name]
        if version != str(pin.version):
            yield f"{name} is listed as {version}, locked as {pin.version}"
        if (licence == NVIDIA and files == ["torch"]) or (licence in _BESIDE and set(files) <= {"dev", "tools"}):
            continue
        yield from (f"{name}: the licence {part} is not permitted" for part in forbidden(licence))
    yield from vendored.complaints(text)


def check(text: str | None = None) -> None:
    """Raise LockError if the list does not match the lock files or has a licence that is not permitted."""
    found = list(complaints(LIST.read_text() if text is None else text))
    if found:
        raise LockError("\n".join([*(f"docs/licences.md: {one}" for one in found), "run `make licences`"]))


def table(licences: Mapping[str, str]) -> str:
    """Return the list; ``licences`` are by package. Raises LockError for a package without a known licence."""
    sections: dict[bool, dict[str, list[str]]] = {True: {}, False: {}}
    for name, (pin, files) in locked().items():
        licence = (
            _DECLARED.get(name) or licences.get(name) or (NVIDIA if name.startswith(("nvidia-", "cuda-")) else None)
        )
        if licence is None:
            raise LockError(f"the licence of {name} is not known: read it, and declare it in supply_chain/licences.py")
        by_licence = sections[not _RELEASED.isdisjoint(files)]
        by_licence.setdefault(normalised(licence), []).append(f"{name} {pin.version}")
    text = _HEADER
    for is_released, by_licence in sections.items():
        text += f"\n## {'Packages of a release' if is_released else 'For development and tests alone'}\n\n"
        text += "".join(f"- {licence}: {', '.join(names)}\n" for licence, names in sorted(by_licence.items()))
    return text + vendored.section()


def _read(path: Path) -> dict[str, str]:
    """Return the licences by package from the JSON of pip-licenses, without unknown ones."""
    found = json.loads(path.read_text())
    return {canonicalize_name(each["Name"]): each["License"] for each in found if each["License"] != "UNKNOWN"}


def main(argv: list[str] | None = None) -> int:
    """Check the list, or write it with ``write JSON…``; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m supply_chain.licences", description="Licences of dependencies.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("check", help="is the list that of the lock files, and everything permitted? Needs no network")
    writing = verbs.add_parser("write", help="write the list")
    writing.add_argument("found", nargs="+", type=Path, help="what pip-licenses found, as JSON; the first one decides")
    options = parser.parse_args(argv)
    try:
        if options.verb == "write":
            said: dict[str, str] = {}
            for path in options.found:
                said = _read(path) | said
            LIST.write_text(table(said))
        check()
    except LockError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
