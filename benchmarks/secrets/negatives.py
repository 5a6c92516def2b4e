"""Texts without a secret: lines of ``negatives.txt`` with values drawn by seed, and the files of installed packages."""

import re
import string
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from random import Random

from benchmarks.secrets.compose import sections, some
from headrace.policy.evaluation import Case

_ALNUM, _HEX = string.ascii_letters + string.digits, "0123456789abcdef"
_LETTERS = {
    "hex": _HEX,
    "hexup": _HEX.upper(),
    "alnum": _ALNUM,
    "b64_": _ALNUM + "+/",
    "b64u": _ALNUM + "-_",
    "base58_": re.sub("[0OIl]", "", _ALNUM),
    "bech": "qpzry9x8gf2tvdw0s3jn54khce6mua7l",
    "base32_": string.ascii_lowercase + "234567",
    "upper": string.ascii_uppercase + string.digits,
    "lower": string.ascii_lowercase + string.digits,
    "digits": string.digits,
}
_PLACE = re.compile(r"\{(uuid|(hexup|hex|alnum|b64_|b64u|base58_|base32_|bech|upper|lower|digits)(\d+))\}")
_SUFFIXES = frozenset([".py", ".pyi", ".md", ".rst", ".txt", ".json", ".js", ".css", ".html", ".toml", ".yaml", ".h"])
_RECORDS = frozenset(["RECORD", "METADATA"])
_FILE_CHARS = 20_000


def negatives(seed: int, part: str, times: int = 5) -> list[Case]:
    """Return each line of a part, filled several times."""
    draw = Random(f"negative {part} {seed}")
    lines = sections("negatives.txt", part)[part]
    return [Case("negative", _filled(line, draw), frozenset(), is_held_out=True) for line in lines * times]


def _filled(line: str, draw: Random) -> str:
    def value(place: re.Match[str]) -> str:
        if place[1] == "uuid":
            return "-".join(some(draw, _HEX, size) for size in (8, 4, 4, 4, 12))
        size = int(place[3])
        # Base64 of 32 and 64 bytes ends so.
        end = "=" * (-size % 3) if place[2] == "b64_" and size in (44, 88) else ""
        return some(draw, _LETTERS[place[2]], size - len(end)) + end

    return _PLACE.sub(value, line).replace("{{", "{").replace("}}", "}")


def package_texts(seed: int, number: int) -> Iterator[tuple[Path, str]]:
    """Yield the beginning of each of ``number`` files of installed packages: programs, pages, lists of digests."""
    folder = Path(sysconfig.get_path("purelib"))
    files = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES or path.name in _RECORDS)
    for path in Random(f"files {seed}").sample(files, number):
        yield path.relative_to(folder), path.read_text(encoding="utf-8", errors="ignore")[:_FILE_CHARS]
