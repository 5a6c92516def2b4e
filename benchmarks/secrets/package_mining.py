"""Takes contexts of secrets and personal data from the files of packages, by rules apart from the recognisers.

``mining`` finds assignments, URLs and headers. These rules find what stands less often in files: options, ``curl -u``,
connection strings, words of other languages, separators other than ``=`` and ``:``, and the other kinds of findings.
"""

import re
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from benchmarks.secrets.mining import PROGRAMS, contexts, is_text, read

_LOCAL = "|".join(
    re.split(
        r"\s*\|\s*|\n\s*",
        """passwort|kennwort|passwörter|mot de passe|contraseña|clave secreta|senha|palavra-passe|chave secreta
        wachtwoord|hasło|heslo|jelszó|lösenord|adgangskode|passord|salasana|parola|şifre|пароль|пароля|паролем
        лозинка|κωδικός|סיסמה|كلمة المرور|رمز عبور|密码|密碼
        口令|密钥|密鑰|パスワード|秘密鍵|トークン|アクセスキー|비밀번호|암호|토큰
        mật khẩu|kata sandi|รหัสผ่าน|ключ api|clé api""",
    )
)
_VALUE = r"[^\s\"'`{}$<>()\[\]\\;|&*,，。、；：:=（）「」【】“”]{3,60}"
_DIGITS = r"[\w\-]{0,16}[\"'`]?\s?[:=][ \t]{0,3}[\"'`]?"
RULES = {
    "option": re.compile(
        r"\s--?(?:[\w\-]{0,20}(?:password|passwd|token|secret|api-?key|access-?key))(?: |=|\s\")[\"']?"
        rf"(?P<v>(?!-){_VALUE})(?=[\"'\s]|$)"
    ),
    "basic": re.compile(rf"\b(?:curl|http|wget)\b[^\n]{{0,80}}\s(?:-u|--user)[ =]?[\"']?[\w.@\-]+:(?P<v>{_VALUE})"),
    "connection": re.compile(
        r"(?i)(?<=[;\"' ])"
        r"(?:shared ?access ?key|account ?key|password|pwd|access ?key|client ?secret)"
        r"=(?P<v>[^\s\"'`{}$<>;\\\[\]]{3,100})(?=;)"
    ),
    "local": re.compile(
        rf"(?i)(?<!公开)(?<!公開)(?:{_LOCAL})[^\W\d_]{{0,6}}[\"'`*]{{0,3}}"
        r"[ \t]{0,3}(?:[:：=＝]|->|→|=>|(?:は|是|为|為|\bist|\best|\bes|\bé)\s?(?=[\"'`「『“*]))"
        rf"[ \t]{{0,3}}[\"'`「『“*]{{0,3}}(?P<v>{_VALUE})(?=[\"'`」』”]|[。)）]?\s*$)"
    ),
    "separator": re.compile(
        r"(?im)\b(?:[\w.\-]{0,20}(?:password|passwd|passphrase|secret|token|api[_\-]?key))[\"'`*]{0,3}"
        r"[ \t]{0,6}(?:->|→|=>|\|(?!\|)|::|\t|:=|\?=|[ ]{2,})[ \t|]{0,6}"
        rf"[\"'`]?(?P<v>{_VALUE})[\"'`]?[ \t]{{0,8}}(?:$|\|)"
    ),
    "email": re.compile(
        r"(?<![\w.+\-/:])(?P<v>[A-Za-z0-9._+\-]{2,40}@[A-Za-z0-9\-]{2,40}(?:\.[a-z]{2,10}){1,2})(?![\w.\-/])"
    ),
    "ip_address": re.compile(
        r"(?<![\w.\-])(?P<v>(?:192\.168|10\.\d{1,3}|172\.\d{2}|203\.0|198\.51)(?:\.\d{1,3}){2})(?![\w.\-/])"
    ),
    "phone": re.compile(
        rf"(?i)(?:phone|mobile|telefon|\btel\b|msisdn|fax){_DIGITS}(?P<v>\+?\(?\d[\d\-() .]{{6,18}}\d)(?![\w\-])"
    ),
    "card": re.compile(
        rf"(?i)(?:card|\bpan\b|cc_?num|number){_DIGITS}(?P<v>[3-6]\d{{3}}(?:[ \-]?\d{{4}}){{2}}[ \-]?\d{{3,4}})(?!\w)"
    ),
    "iban": re.compile(rf"(?i)iban{_DIGITS}(?P<v>[A-Z]{{2}}\d{{2}}[A-Z0-9 ]{{11,30}})(?!\w)"),
    "us_ssn": re.compile(r"(?<![\w\-])(?P<v>\d{3}-\d{2}-\d{4})(?![\w\-])"),
    "national_id": re.compile(
        r"(?i)(?:national_?id(?:entification)?|tax_?id|id_?number|identification_?number|cpf|cnpj|pesel|\bnif\b|\bdni\b"
        r"|personal_?id)"
        rf"{_DIGITS}(?P<v>[A-Z0-9]{{1,4}}[0-9.\-/]{{6,14}}[A-Z0-9]?)(?!\w)"
    ),
}  # fmt: skip
SECRETS = ("key", "password", "url", "option", "basic", "connection", "local", "separator")
PERSONAL = ("email", "ip_address", "phone", "card", "iban", "us_ssn", "national_id")
# What a line of a rule has, in small letters, which saves the time of the rule on the others.
_HINTS = {
    "option": ("--",),
    "basic": ("curl ", "wget ", "http "),
    "connection": (";",),
    "local": tuple(_LOCAL.split("|")),
    "separator": ("passw", "passphrase", "secret", "token", "api"),
    "email": ("@",),
    "ip_address": ("192.", "10.", "172.", "203.", "198."),
    "phone": ("phone", "mobile", "tel", "msisdn", "fax"),
    "card": ("card", "pan", "number", "num"),
    "iban": ("iban",),
    "us_ssn": ("ssn", "social", "-"),
    "national_id": ("national", "tax", "id", "cpf", "cnpj", "pesel", "nif", "dni"),
}
# What a file has that is read at all.
_OF_FILE = (
    b"passw",
    b"Passw",
    b"secret",
    b"api_key",
    b"apiKey",
    b"AccessKey",
    b"iban",
    b"phone",
    b"ssn",
    b"curl -",
    *(word.encode() for word in _LOCAL.split("|")),
)
# In programs a name stands behind these.
_ON_PAGES = ("separator", "connection", "local")
_NO_EXAMPLE = re.compile(
    r"(?i)^(?:none|null|nil|true|false|str(?:ing)?|bytes|int|bool|optional|required|[*.x\-_]+)$|^[%@/\-]|::"
)
# The example was only the begin of a value.
_GOES_ON = re.compile(r"[\w$({/.+\-]")
_LONGEST_LINE = 200
_MOST_OF_A_FILE = 3
_MOST_OF_A_PACKAGE = 40
_MOST_FILES = 150
_CHARS = 60_000


@dataclass(frozen=True, slots=True)
class Place:
    """The text before and behind an example, what sort it is, and the package that has it."""

    sort: str
    before: str
    after: str
    package: str


def package_of(path: Path, folders: list[Path]) -> str:
    """Return the name of the package of a file: the folder below one of ``folders``."""
    folder = next(each for each in folders if path.is_relative_to(each))
    return path.relative_to(folder).parts[0]


def half(name: str) -> int:
    """Return to which of two halves a package or a vendor belongs."""
    return zlib.crc32(name.encode()) % 2


def files(folders: list[Path], part: int, having: tuple[bytes, ...] = (b"",)) -> Iterator[Path]:
    """Yield text files of the packages of a half that have one of some words: at most 150 of each, drawn."""
    for folder in folders:
        for package in sorted(folder.iterdir()):
            if half(package.name) == part:
                texts = [path for path in sorted(package.rglob("*")) if is_text(path) or _is_manual(path)]
                Random(package.name).shuffle(texts)
                fitting = (path for path in texts if any(map(path.read_bytes().__contains__, having)))
                yield from islice(fitting, _MOST_FILES)


def _is_manual(path: Path) -> bool:
    return path.suffix in {".1", ".3", ".5", ".7", ".8"} and path.parent.name.startswith("man") and path.is_file()


def places(folders: list[Path], part: int) -> dict[str, list[Place]]:
    """Return the places of a half of the packages by their sort: one of each form, at most 40 of a package."""
    found = defaultdict[str, dict[str, Place]](dict)
    counts = defaultdict[tuple[str, str], int](int)
    for path in files(folders, part, _OF_FILE):
        of_file = defaultdict[str, int](int)
        for place in _of_file(path, package_of(path, folders)):
            form = re.sub(r"[\d\s]+", " ", place.before[-60:])
            is_full = of_file[place.sort] == _MOST_OF_A_FILE or counts[place.package, place.sort] == _MOST_OF_A_PACKAGE
            if not is_full and form not in found[place.sort]:
                found[place.sort][form] = place
                of_file[place.sort] += 1
                counts[place.package, place.sort] += 1
    return {sort: list(by_form.values()) for sort, by_form in found.items()}


def _of_file(path: Path, package: str) -> Iterator[Place]:
    for each in contexts([path]) if is_text(path) else ():
        if _GOES_ON.match(each.after):
            continue
        sort = "url" if each.is_url else "password" if each.is_password else "key"
        yield Place(sort, each.before, each.after, package)
    for line in read(path)[:_CHARS].splitlines():
        if len(line) > _LONGEST_LINE:
            continue
        lowered = line.lower()
        for sort, rule in RULES.items():
            is_page = path.suffix not in PROGRAMS
            if not any(map(lowered.__contains__, _HINTS[sort])) or (sort in _ON_PAGES and not is_page):
                continue
            matches = list(rule.finditer(line))
            if len(matches) == 1 and not _NO_EXAMPLE.search(matches[0]["v"]):
                start, end = matches[0].span("v")
                yield Place(sort, line[:start], line[end:], package)
