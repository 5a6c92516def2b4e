"""``python -m supply_chain.secret_words FOLDER...``: learn the words for passwords and keys from translations.

Writes ``policy/data/secret_words.txt``: the translations of labels such as "Password" and "API key" in all ``.po``
files of the folders, without those that are known already or mean something else too. The file that ships is from
Django 5.2.8, Superset 6.1.0, allauth 65.22.1, wagtail 8.0.1, two-factor 1.18.1 and smaller ones (BSD, Apache, MIT).
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from policy.recognisers.secret_words import LEARNED, is_known
from policy.text.normalisation import normalise

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
        " نشانه купуя рамз sandi jeton coduri 验证码 whakapiri modpas engangskode engångskod",
    )
)
_ENTRY = re.compile(r'^msgid "((?:[^"\\]|\\.)*)"\nmsgstr "((?:[^"\\]|\\.)*)"$', re.MULTILINE)
_FUZZY = re.compile(r"^#,.*fuzzy", re.MULTILINE)
_MOST_CHARS = 40


def _translations(path: Path) -> Iterator[tuple[str, str]]:
    for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="ignore")):
        if not _FUZZY.search(block) and (entry := _ENTRY.search(block)):
            yield entry[1], entry[2].replace('\\"', '"').strip().rstrip(":： ")


def words(folders: list[Path], labels: frozenset[str]) -> list[str]:
    """Return the translations of labels that no word is known for, normalised."""
    pairs = (pair for folder in folders for path in sorted(folder.rglob("*.po")) for pair in _translations(path))
    found = {normalise(text).text.lower() for label, text in pairs if label in labels and 4 <= len(text) <= _MOST_CHARS}
    return sorted(word for word in found - _LEFT_OUT if not is_known(word) and "{" not in word)


def main() -> None:
    """Write the file."""
    folders = [Path(each) for each in sys.argv[1:]]
    LEARNED.write_text(
        "".join(f"{sort}\t{word}\n" for sort, labels in _LABELS.items() for word in words(folders, labels))
    )


if __name__ == "__main__":
    main()
