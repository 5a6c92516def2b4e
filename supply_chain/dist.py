"""Builds the source distribution and the wheel of a release: ``python -m supply_chain.dist FOLDER [--tag TAG]``."""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from supply_chain.locks import ROOT, read_project

_BUILD = "import sys, setuptools.build_meta as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"


def build(into: Path) -> tuple[Path, Path]:
    """Return the source distribution of what git would commit, and the wheel that is built from it.

    Not of the folder itself, in which files of an earlier build would come along. Raises CalledProcessError.
    """
    into.mkdir(parents=True, exist_ok=True)
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        for name in filter(None, names):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).exists():  # else it is deleted, and that is not committed yet
                shutil.copy(ROOT / name, source / name, follow_symlinks=False)
        archive = into / _built("build_sdist", source, into)
        shutil.unpack_archive(archive, scratch, filter="data")
        return archive, into / _built("build_wheel", Path(scratch) / archive.name.removesuffix(".tar.gz"), into)


def _built(hook: str, source: Path, into: Path) -> str:
    command = [sys.executable, "-P", "-c", _BUILD, hook, str(into.absolute())]
    return subprocess.run(command, cwd=source, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1]


def complaint(tag: str, version: str, changelog: str) -> str | None:
    """Return why a tag is not that of a release of this version; None if it is."""
    if tag != f"v{version}":
        return f"the tag is {tag}, and pyproject.toml has the version {version}"
    if not re.search(rf"(?m)^## {re.escape(version)} – \d{{4}}-\d\d-\d\d$", changelog):
        return f"CHANGELOG.md has no line `## {version} – YYYY-MM-DD`"
    return None


def main(argv: list[str] | None = None) -> int:
    """Build both into a folder; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m supply_chain.dist", description="The files of a release.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tag", help="refuse unless it is that of this version")
    options = parser.parse_args(argv)
    if options.tag:
        why = complaint(options.tag, read_project()["project"]["version"], (ROOT / "CHANGELOG.md").read_text())
        if why:
            sys.stderr.write(why + "\n")
            return 1
    sys.stdout.write("".join(f"{path}\n" for path in build(options.folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
