"""Takes contexts of secrets from the files of folders, by rules that know nothing of the recognisers.

A page, a program or settings of another project that show a password or key as an example become a context: the
example is replaced by a drawn value. A context is at most three lines, in which the rules find one example only. Lines
with numbers, digests and ids, but no word for a secret, become the texts without a secret.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

_PASSWORD = r"(?:password|passwd|passphrase|passwort|pwd)"
_KEY = (
    r"(?:api[_\-]?key|secret[_\-]?key|access[_\-]?key|secret[_\-]?access[_\-]?key|(?:client|app|api|shared)[_\-]?secret|secret"
    r"|(?:api|auth|access|bearer|bot|refresh|personal|private|secret|security|session|deploy|registration)[_\-]?token)"
)
_NAME = rf"(?P<name>(?<![\w.\-$])(?:[\w.\-]{{0,40}}?)(?P<word>(?i:{_PASSWORD}|{_KEY}))\d?)"
_QUOTED = r"(?:\"(?P<v{n}>[^\"\s{{}}$<>\\]{{3,80}})\"|'(?P<w{n}>[^'\s{{}}$<>\\]{{3,80}})')"
_BARE = r"(?P<b{n}>[^\s\"'`{{}}$<>()\[\]\\,;|&!*]{{3,80}})(?=\s*(?:#.*)?$)"
# In programs a bare word behind a name is a variable; in settings and pages it is the value.
_CODE = re.compile(
    rf"(?m){_NAME}[\"']?\s?(?::=|=>|:|=)(?!=)\s{{0,8}}{_QUOTED.format(n=0)}"
    r"|(?P<url>://[\w.\-]*):(?P<b1>[^\s/@:\"'`{}$<>()\[\]\\%*]{3,40})@[\w.\-]+"
    r"|(?P<head>(?i:authorization[\"']?[:=,]\s{0,4}[\"']?(?:bearer|token) ))(?P<b2>[^\s\"'`{}$<>()\[\]\\]{6,200})"
    rf"|(?P<option>--(?P<given>[\w\-]{{0,20}}(?i:{_PASSWORD}|{_KEY}))[ =])"
    r"(?P<b3>[^\s\"'`{}$<>()\[\]\\|\-][^\s\"'`{}$<>()\[\]\\|]{2,80})"
)
_SETTINGS = re.compile(
    rf"{_CODE.pattern}|{_NAME.replace('name', 'name2').replace('word', 'word2')}"
    rf"\s?[:=](?!=)[ \t]{{0,8}}{_BARE.format(n=4)}"
)
PROGRAMS = frozenset(
    [".py", ".pyi", ".js", ".ts", ".mjs", ".go", ".rb", ".php", ".java", ".kt", ".c", ".h", ".pl", ".pm"]
)
_PAGES = frozenset([
    *(".md", ".rst", ".txt", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf", ".env", ".sh", ".bash", ".properties"),
    *(".json", ".xml", ".html", ".tf", ".sql", ".http", ".adoc", ".sample", ".example", ".tpl"),
])  # fmt: skip
_NO_VALUE = re.compile(
    r"(?i)^(?:none|null|nil|true|false|str|string|bytes|int|bool|optional|required|[*.x\-_]+)$|[(\[]|::|^%|^@|^/"
)
_SPECIAL = re.compile(r"(?i)(?:tokeni[sz]er|\bpassword_?(?:field|input|hash|file|path|type)|i18n|locale|translations?)")
_HINT = re.compile(r"(?i)passw|passphrase|pwd|secret|token|api[_\-]?key|access[_\-]?key|://[\w.\-]*:\S{1,40}@")
_LONGEST_LINE = 200
_MOST_CHARS = 400_000
_MOST_OF_A_FILE = 4
_MOST_LINES_OF_A_FILE = 2
_TOLD = re.compile(r"(?i)pass|pwd|secret|token|key|credential|auth|private|cookie|session")
_ID = re.compile(r"(?=[\w\-+/=]*\d)(?=[\w\-+/=]*[A-Za-z])[\w\-+/=]{12,}")


@dataclass(frozen=True, slots=True)
class Context:
    """The text before and behind a secret; whether it is a password, and whether only signs of URLs may stand there."""

    before: str
    after: str
    is_password: bool
    is_url: bool
    source: str


def is_text(path: Path) -> bool:
    """True for a file of a program, a page or settings."""
    is_read = path.suffix in PROGRAMS or path.suffix in _PAGES or path.name.startswith(".env")
    return is_read and path.is_file() and not path.is_symlink()


def _files(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in (sorted(folder.rglob("*")) if folder.is_dir() else [folder]) if is_text(path))


def read(path: Path) -> str:
    """Return the begin of a file's text."""
    return path.read_text(encoding="utf-8", errors="ignore")[:_MOST_CHARS]


def _spans(found: re.Match[str]) -> tuple[int, int, bool, bool]:
    """Return begin and end of the value, whether it is a password, and whether a URL has it."""
    group = next(name for name, value in found.groupdict().items() if value is not None and name[1:].isdigit())
    named = found["word"] or found.groupdict().get("word2") or found["given"]
    is_password = found["url"] is not None or (
        named is not None and re.fullmatch(rf"(?i){_PASSWORD}", named[-10:]) is not None
    )
    is_password |= named is not None and re.search(rf"(?i){_PASSWORD}$", named) is not None
    return *found.span(group), is_password, found["url"] is not None


def contexts(folders: list[Path]) -> list[Context]:
    """Return the contexts of all files, and files of folders, one of each form, in the order of the files."""
    found: dict[str, Context] = {}
    for path in _files(folders):
        form = _SETTINGS if path.suffix in _PAGES or path.name.startswith(".env") else _CODE
        text, taken = read(path), 0
        lines = text.splitlines() if _HINT.search(text) else []
        for number, line in enumerate(lines):
            if len(line) > _LONGEST_LINE or not _HINT.search(line) or _SPECIAL.search(line):
                continue
            around = [
                each if len(each) <= _LONGEST_LINE else ""
                for each in (*lines[max(0, number - 1) : number], line, *lines[number + 1 : number + 2])
            ]
            context = _context("\n".join(around), form, line, str(path)) or _context(line, form, line, str(path))
            if context is not None and (key := re.sub(r"[\d\s]+", " ", context.before[-60:])) not in found:
                found[key] = context
                taken += 1
                if taken == _MOST_OF_A_FILE:
                    break
    return list(found.values())


def _context(text: str, form: re.Pattern[str], line: str, source: str) -> Context | None:
    matches = list(form.finditer(text))
    if len(matches) != 1:
        return None
    start, end, is_password, is_url = _spans(matches[0])
    if _NO_VALUE.search(text[start:end]) or text[start:end] not in line:
        return None
    return Context(text[:start], text[end:], is_password, is_url, source)


def half(context: Context) -> int:
    """Return to which of two halves a context belongs, by the folder of its file."""
    return zlib.crc32(str(Path(context.source).parent).encode()) % 2


def lines_without(folders: list[Path], seed: int, number: int) -> list[tuple[str, str]]:
    """Return lines that have an id, a digest or the like and, with their neighbours, no word for a secret; their files.

    At most a few lines of each file, so that no list of digests rules.
    """
    draw, found, of_file = Random(f"lines {seed}"), list[tuple[str, str]](), Counter[str]()
    paths = list(_files(folders))
    draw.shuffle(paths)
    for path in paths:
        lines = read(path).splitlines()
        for at in draw.sample(range(len(lines)), len(lines)):
            near = "\n".join(lines[max(0, at - 1) : at + 2])
            if len(near) < 3 * _LONGEST_LINE and _ID.search(lines[at]) and not _TOLD.search(near):
                found.append((near, str(path)))
                of_file[str(path)] += 1
                if of_file[str(path)] == _MOST_LINES_OF_A_FILE:
                    break
        if len(found) >= number:
            break
    return found[:number]
