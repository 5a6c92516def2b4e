"""``python -m supply_chain.secret_words FOLDER...``: learn the words for passwords and keys from translations.

Writes ``policy/data/secret_words.txt``: the translations of labels such as "Password" and "API key" in all ``.po``
files of the folders, and lists of labels (``benchmarks/secrets/labels.txt``), without those that are known already or
mean something else too. Words that the file has stay in it. The file that ships is from Django 5.2.8, Superset 6.1.0,
allauth 65.22.1, wagtail 8.0.1, two-factor 1.18.1, Flask-AppBuilder 5.3.0, Flask-Security 5.9.2, django-oscar 4.2.1,
Indico 3.3.14, pretalx 2026.2.1 and smaller ones (BSD, Apache, MIT), and from those labels.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from headrace.policy.recognisers.secret_words import LEARNED, is_known, is_loose
from headrace.policy.text.normalisation import normalise

_LABELS = {
    "password": frozenset(["Password", "password", "Passphrase", "passphrase"]),
    "key": frozenset([
        *("API key", "API token", "Secret", "Secret key", "secret key", "Client secret", "Token", "token"),
        *("Access token", "token secret", "Authenticator secret", "TOTP Secret:", "Refresh token", "Backup Tokens"),
    ]),
}  # fmt: skip
# Words for codes, signs and access in general.
_LEFT_OUT = frozenset(
    re.findall(
        r"\S+",
        "kod kodas kode cod código codigo nişan tokin tooken tunniste pilnvara nøkkel código ключ код კოდი رمز كود"
        " نشانه купуя рамз sandi jeton coduri 验证码 whakapiri modpas engangskode engångskod tunnus символ gihoam",
    )
)
_ENTRY = re.compile(r'^msgid "((?:[^"\\]|\\.)*)"\nmsgstr "((?:[^"\\]|\\.)*)"$', re.MULTILINE)
_FUZZY = re.compile(r"^#,.*fuzzy", re.MULTILINE)
_SIGN = re.compile(r"[{}()\[\]<>%:,!?]")
_MOST_CHARS = 40


def _translations(path: Path) -> Iterator[tuple[str, str]]:
    for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="ignore")):
        if not _FUZZY.search(block) and (entry := _ENTRY.search(block)):
            yield entry[1], entry[2].replace('\\"', '"').strip().rstrip(":： ")


def _listed(path: Path, sort: str) -> Iterator[str]:
    """Yield the labels of a sort in a list with sections, such as ``[held_key]``."""
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif section.endswith(f"_{sort}") and not line.startswith("# "):
            yield line


def words(sources: list[Path], sort: str, known: frozenset[str]) -> list[str]:
    """Return ``known``, and the labels of a sort in the sources that no word is known for, normalised."""
    folders, lists = [each for each in sources if each.is_dir()], [each for each in sources if each.is_file()]
    pairs = (pair for folder in folders for path in sorted(folder.rglob("*.po")) for pair in _translations(path))
    texts = {text for label, text in pairs if label in _LABELS[sort]}
    texts |= {text for path in lists for text in _listed(path, sort)}
    found = {normalise(text).text.lower() for text in texts if 4 <= len(text) <= _MOST_CHARS}
    found = {word for word in found - _LEFT_OUT if not (is_known(word) or is_loose(word) or _SIGN.search(word))}
    found |= known
    return sorted(word for word in found if not any(_holds(word, other) for other in found if other != word))


def _holds(label: str, word: str) -> bool:
    return word in label and re.search(rf"\b{re.escape(word)}", label) is not None


def _learned(sort: str) -> frozenset[str]:
    rows = (line.split("\t") for line in LEARNED.read_text(encoding="utf-8").splitlines())
    return frozenset(word for each, word in rows if each == sort)


def main() -> None:
    """Write the file."""
    sources = [Path(each) for each in sys.argv[1:]]
    found = {sort: words(sources, sort, _learned(sort)) for sort in _LABELS}
    LEARNED.write_text("".join(f"{sort}\t{word}\n" for sort, listed in found.items() for word in listed))


if __name__ == "__main__":
    main()
