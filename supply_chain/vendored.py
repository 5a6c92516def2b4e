"""The libraries of other projects that are files of this repository, unchanged: their versions, licences and digests.

They come from npm (``npm pack NAME@VERSION``). The digest is that of the file in the package.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from supply_chain.locks import ROOT

FOLDER = ROOT / "features" / "console" / "static" / "vendor"


@dataclass(frozen=True)
class VendoredFile:
    """A file of an npm package. ``path`` is its place in the package."""

    name: str
    package: str
    version: str
    path: str
    licence: str
    sha256: str


VENDORED = (
    # A bundle with Preact 10, which is MIT.
    VendoredFile(
        "htm-preact.js",
        "htm",
        "3.1.1",
        "preact/standalone.module.js",
        "Apache-2.0 AND MIT",
        "72284e8e9079c87817145df1110f74e8a2aa040b2fc384922e18dfcb46fc1fd7",
    ),
    VendoredFile(
        "uplot.js",
        "uplot",
        "1.6.32",
        "dist/uPlot.esm.js",
        "MIT",
        "5dd9b3281aa64b461b42d9945f6adb2649d346502b12281a9ae0d46599a80eba",
    ),
    VendoredFile(
        "uplot.css",
        "uplot",
        "1.6.32",
        "dist/uPlot.min.css",
        "MIT",
        "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    ),
)

_HEADER = """
## Libraries of the console

Files of npm packages, unchanged, in `features/console/static/vendor/` with their licences. Declared in
`supply_chain/vendored.py`.

| package | version | licence | file | SHA-256 |
|---|---|---|---|---|
"""


def section() -> str:
    """Return the part of docs/licences.md."""
    rows = (f"| {f.package} | {f.version} | {f.licence} | `{f.path}` | `{f.sha256}` |\n" for f in VENDORED)
    return _HEADER + "".join(rows)


def complaints(text: str) -> Iterator[str]:
    """Yield a sentence for each error: in the list, or in a file."""
    if section() not in text:
        yield "the libraries of the console are missing or others"
    for file in VENDORED:
        if hashlib.sha256((FOLDER / file.name).read_bytes()).hexdigest() != file.sha256:
            yield f"{file.name} is not the file of {file.package} {file.version}"
