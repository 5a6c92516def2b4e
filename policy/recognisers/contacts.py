"""Email addresses and phone numbers."""

import re
from functools import cache, lru_cache
from ipaddress import ip_address
from typing import Any

import phonenumbers
import re2
from phonenumbers import NumberParseException, PhoneMetadata, PhoneNumber

from headrace.policy.recognisers.recogniser import Kind, Recogniser, Spans, Words, letters_and_digits
from headrace.policy.text.normalisation import normalise
from headrace.policy.text.patterns import options

_LETTERS = (
    r"a-zA-Z\u00c0-\u024f\u0300-\u036f\u0370-\u03ff\u0400-\u04ff\u0531-\u0587\u05d0-\u05ea\u0621-\u064a\u066e-\u06d3"
    r"\u0900-\u0963\u10a0-\u10ff"
)
"""Of scripts that put spaces between words."""
_LOCAL = rf"[{_LETTERS}0-9!#$%&'*+/=?^_`{{|}}~.\-]"
_DOMAIN = rf"[{_LETTERS}0-9.\-]"

# What stands after an @ in names of files and packages, and is no domain.
_FILE_ENDINGS = frozenset(
    ("png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "css", "js", "mjs", "ts", "tsx", "jsx", "json", "yaml", "toml")
)
# As in a text, in a URL and in HTML.
_AT = re.compile("@|%40|&#64;|&#x40;|&commat;")
_LABEL = re.compile(rf"[{_LETTERS}0-9](?:[{_LETTERS}0-9-]{{0,61}}[{_LETTERS}0-9])?")
_USER_OF_URL = re.compile(r"\b(?:https?|s?ftp|ssh|git)://$")
# The next field's name, which touches the address: ann@example.comPhone.
_NEXT_WORD = re.compile(r"(\.[a-z]{2,24})[A-Z][a-z]+$")
_TOP = re.compile(rf"[{_LETTERS}]{{2,24}}|xn--[a-zA-Z0-9-]{{2,59}}")


def check_email(candidate: str, before: str) -> Spans:
    """Yield an address with a possible domain."""
    *_, at = _AT.finditer(candidate)
    local, rest = candidate[: at.start()], candidate[at.end() :]
    start = len(local) - len(local.lstrip("._!#$%&'*+/=?^`{|}~-"))
    # Characters that are allowed in an address, but mostly belong to the sentence, URL or code around it.
    start = max(start, *(local.rfind(sign) + 1 for sign in "=`|/"), local.rfind("='") + 2 if "='" in local else 0)
    local = local[start:]
    domain = _NEXT_WORD.sub(r"\1", rest.partition(":")[0].rstrip(".-"))
    is_remote = (":" in rest or candidate[:start].endswith("//")) and local.lower() in {"git", "hg", "svn"}
    if _USER_OF_URL.search(before + candidate[:start]):
        return
    if not local or local.endswith(".") or ".." in local or is_remote or _is_no_address(before, start):
        return
    if _is_domain(domain):
        yield start, at.end() + len(domain)


def _is_no_address(before: str, start: int) -> bool:
    """Return True for @name@host, and for the password in a URL."""
    if start:
        return False
    return before.endswith("@") or bool(re.search(r"://[^\s/@]{0,60}:$", before))


def _is_domain(domain: str) -> bool:
    labels = domain.split(".")
    if len(labels) < 2 or not all(_LABEL.fullmatch(label) for label in labels):
        return False
    return _TOP.fullmatch(labels[-1]) is not None and labels[-1].lower() not in _FILE_ENDINGS


EMAIL = Recogniser(
    "email",
    Kind.EMAIL,
    80,
    # With the suffix that git writes after a host, to exclude git remotes.
    rf"{_LOCAL}{{1,64}}(?:@|%40|&#64;|&#x40;|&commat;){_DOMAIN}{{1,255}}(?::[a-zA-Z~])?",
    check_email,
    same=str.casefold,
)

_WIDE = r"\u0e01-\u0e3a\u0e40-\u0e4e\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
"""Letters of scripts that put none: only a few before an @ can be a name."""

# In which a domain ends though a text goes on behind it. As texts are read: a long Japanese vowel reads as a dash.
_WIDE_TOPS = normalise(
    "中国 中國 公司 网络 網絡 网址 在线 中文网 商城 商店 香港 台湾 台灣 新加坡 澳门 澳門 集团 我爱你 手机 移动 信息"
    " 企业 政府 机构 公益 网站 购物 餐厅 みんな コム ストア セール クラウド ポイント 한국 닷컴 닷넷 삼성 ไทย คอม"
).text.split()
_WIDE_LABEL = rf"[{_LETTERS}{_WIDE}0-9](?:[{_LETTERS}{_WIDE}0-9\-]{{0,62}})"
_WIDE_DOMAIN = re.compile(
    rf"(?:{_WIDE_LABEL}\.){{1,5}}(?:{'|'.join(_WIDE_TOPS)}|xn--[a-zA-Z0-9-]{{2,59}}|[{_LETTERS}]{{2,24}}(?![{_LETTERS}0-9-]))"
)
_IS_WIDE = re.compile(f"[{_WIDE}]")


def check_wide_email(candidate: str, before: str) -> Spans:
    """An address with Chinese, Japanese, Korean or Thai letters; the text before it may touch it."""
    local, _, rest = candidate.partition("@")
    domain = _WIDE_DOMAIN.match(rest)
    if domain is None or not _IS_WIDE.search(local + domain[0]) or _is_no_address(before, 0):
        return
    start = len(local) - len(local.lstrip("._!#$%&'*+/=?^`{|}~-"))
    yield max(start, local.rfind("=") + 1), len(local) + 1 + domain.end()


WIDE_EMAIL = Recogniser(
    "email.wide",
    Kind.EMAIL,
    81,
    rf"(?:[{_WIDE}]{{1,4}}[0-9]{{0,4}}@[{_LETTERS}{_WIDE}0-9.\-]{{1,255}}"
    rf"|{_LOCAL}{{1,64}}@[{_LETTERS}0-9.\-]{{0,64}}[{_WIDE}][{_LETTERS}{_WIDE}0-9.\-]{{0,190}})",
    check_wide_email,
    same=str.casefold,
)


def check_literal_email(candidate: str, before: str) -> Spans:
    """An address at a host that is given by its number."""
    local, _, host = candidate.rpartition("@")
    start = len(local) - len(local.lstrip("._!#$%&'*+/=?^`{|}~-"))
    start = max(start, *(local.rfind(sign) + 1 for sign in "=`|/"))
    try:
        ip_address(re.sub("(?i)^IPv6:", "", host[1:-1]))
    except ValueError:
        return
    if start < len(local) and not _is_no_address(before, start):
        yield start, len(candidate)


LITERAL_EMAIL = Recogniser(
    "email.literal",
    Kind.EMAIL,
    82,
    rf"{_LOCAL}{{1,64}}@\[(?:[Ii][Pp][Vv]6:)?[0-9A-Fa-f:.]{{2,45}}\]",
    check_literal_email,
    same=str.casefold,
)

_KNOWN_TOPS = frozenset(
    " ".join(
        (
            "com org net edu gov mil int info biz io co me ai app dev eu uk de fr es it nl be ch at pl pt se no dk fi",
            "cz sk hu ro bg gr ie us ca mx br ar cl au nz in jp cn kr tw hk sg id my th vn ph za ng ke eg il",
            "tr ua ru lt lv ee is lu",
        )
    ).split()
)
_SPELLED = re.compile(r"[\[({](?:(at|@)|dot|punkt|\.)[\])}]", re.I)


def check_spelled_email(candidate: str, _before: str) -> Spans:
    """An address with its signs in brackets or as words in brackets, against robots."""
    plain = _SPELLED.sub(lambda sign: "@" if sign[1] else ".", candidate)
    local, _, domain = plain.partition("@")
    is_known = domain.rpartition(".")[2].lower() in _KNOWN_TOPS
    if is_known and _is_domain(domain) and local.strip("._%+-") == local:
        yield 0, len(candidate)


SPELLED_EMAIL = Recogniser(
    "email.spelled",
    Kind.EMAIL,
    79,
    # Without spaces, for which every word would have to be held back.
    r"\b[A-Za-z0-9][A-Za-z0-9._%+\-]{0,63}[\[({](?i:at|@)[\])}][A-Za-z0-9\-]{1,63}"
    r"(?:(?:\.|[\[({](?i:dot|punkt|\.)[\])}])[A-Za-z0-9\-]{1,63}){1,5}",
    check_spelled_email,
    same=str.casefold,
)


EMAILS = (EMAIL, WIDE_EMAIL, LITERAL_EMAIL, SPELLED_EMAIL)

REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "BE", "CH", "AT", "PL", "PT", "SE", "BR", "MX", "IN", "JP", "AU")
"""The possible regions of a number without a country code, in the order in which they are tried."""

REGIONS_IF_ANNOUNCED = (
    *REGIONS,
    *("CA", "IE", "NO", "DK", "FI", "CZ", "SK", "HU", "RO", "BG", "GR", "HR", "RS", "UA", "RU", "TR", "IL", "SA", "AE"),
    *("EG", "ZA", "NG", "KE", "MA", "PK", "BD", "LK", "TH", "VN", "MY", "SG", "ID", "PH", "CN", "HK", "TW", "KR", "NZ"),
    *("AR", "CL", "CO", "PE", "EC", "UY", "CR", "DO", "LT", "LV", "EE", "SI", "LU", "IS"),
)
"""The possible regions if the words before announce a phone number."""

_ABOUT_PHONES = Words(
    # First, since of two words that begin at one place the first is taken.
    "(?:phone|ph|tel|mob|mobile|cell|fax|contact|whatsapp)\\.?\\s(?:no|nr)\\.?"
    # As parts of names in programs: receiver_phone, receiverPhone.
    " \\w{1,24}_(?:phone|mobile|telephone|tel|fax|cell|msisdn)"
    " (?-i:[a-z]\\w{0,24}(?:Phone|Mobile|Telephone|Tel|Fax|Msisdn)(?:No|Nr|Number)?\\b) msisdn"
    " tel tél telephone telephon telefon telefono teléfono telefone téléphone telefoon puhelin puh\\b phone"
    " ph\\b mobile mobil mob\\b móvil telemóvel cell cellulare cellphone celular cel\\b portable handy natel gsm\\b"
    " fax call text sms wa\\.me whatsapp signal ring dial reach hotline contact anruf ruf appell llama llámame ligue"
    " chiama bel zadzwoń tlf cep\\b hp\\b h/p komórk sđt điện telp numer\\stelefonu"
    " ☎ 📞 📱 τηλ κιν тел моб звон 電話 电话 電話 手机 手機 携帯 전화 휴대폰 फोन मोबाइल هاتف جوال"
    " موبايل טלפון נייד โทร มือถือ",
    "order invoice tracking shipment waybill parcel"
    " reference ref isbn issn ean sku serial version build ticket case account acct part"
    " transaction receipt imei vin lot batch model item bestell rechnung sendung auftrag kunden pedido factura commande"
    " facture ordine fattura zamówieni faktur заказ счет 订单 注文 id no\\. nr\\. iso rfc pid iban konto",
)
_DAY, _MONTH, _YEAR = r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0?[1-9]|1[0-2])", r"(?:19|20)\d\d"
_DATE = re.compile(
    rf"\b{_YEAR}[-./ ]\d{{1,2}}[-./ ]\d{{1,4}}\b"
    # Not among more such pairs: so are the phone numbers of France written.
    rf"|(?<![-./])\b(?:{_DAY}[-./]{_MONTH}|{_MONTH}[-./]{_DAY})[-./](?:{_YEAR}|\d\d)\b(?![-./]\d)"
)
_NANP = re.compile(r"(?:(?:\+|00)?1[-. ]?)?(?:\([2-9]\d\d\) ?\d{3}[-. ]\d{4}|[2-9]\d\d([-. ])\d{3}\1\d{4})")
_NO_PHONES = tuple(
    re.compile(pattern)
    for pattern in (
        r"^[0-2]\d[0-5]\d ?- ?[0-2]\d[0-5]\d$",  # hours
        r"\d\.\d+ +\d|\d +\d+\.\d|^0\.\d+$",  # decimals
        r"^\d{1,3}(?:[ .]\d{3})+$",  # thousands
        r"^(?:19|20)\d\d ?- ?(?:19|20)\d\d$",  # years
    )
)
_STATE, _ZIP = re.compile(r"\b[A-Z]{2}\s{1,2}$"), re.compile(r"\d{5}-\d{4}")
# A card's groups, whether it is one or not.
_FOURS = re.compile(r"\d{4}([ \-])\d{4}\1\d{4}\1\d{1,7}")
_EXTENSION_PATTERN = r",? ?(?:x|ext|ext\.|ext:|extension) ?\d{1,6}"
# As in 00534233-1849-48cb.
_LETTERS_BEHIND = r"-\d{0,4}[A-Za-z]"
_EXTENSION = re.compile(rf"(?:{_EXTENSION_PATTERN})$")
_GROUP = re.compile(r"[+(]*\d+\)?")
_DOTTED = str.maketrans(dict.fromkeys("·•", "."))


def check_phone(candidate: str, before: str) -> Spans:
    """Yield the longest parts that are possible phone numbers."""
    opinion = _ABOUT_PHONES.judge(before)
    candidate = candidate.translate(_DOTTED)
    if not candidate.startswith(("+", "(+")) and _goes_on_from(before, candidate, opinion):
        return
    whole = candidate
    candidate = re.sub(f"{_LETTERS_BEHIND}$", "", candidate)
    number = _EXTENSION.sub("", candidate)
    extended = {len(number): len(candidate)}
    groups = [found.span() for found in _GROUP.finditer(number)]
    if number.count("(") > number.count(")") and number.startswith("("):
        # Of the sentence.
        groups[0] = 1, groups[0][1]
    first = 0
    if opinion <= 0 and (_FOURS.fullmatch(number) or (_ZIP.fullmatch(number) and _STATE.search(before))):
        return
    while first < len(groups):
        last = _longest(whole, groups, first, opinion)
        if last is None and not number[groups[first][0] :].startswith(("+", "(+")):
            # A start in the middle of a row of digits is part of another number, unless it has a plus sign.
            first = next((at for at in range(first + 1, len(groups)) if "+" in number[slice(*groups[at])]), len(groups))
        elif last is None:
            first += 1
        else:
            end = groups[last][1]
            yield groups[first][0], extended.get(end, end)
            first = last + 1


def _goes_on_from(before: str, candidate: str, opinion: int) -> bool:
    """True if what stands before makes the digits part of something longer, or an amount."""
    if (before[-1:] in {"/", "#", "_", "@"} and not before.endswith("wa.me/")) or before[-2:].strip() in {
        "$",
        "€",
        "£",
    }:
        return True
    if before[-1:] in {"-", "="}:
        return opinion <= 0
    if before[-1:] == "," and before[-2:-1].isdigit():
        # 1,234 567 is an amount; a row of a table has longer numbers, or ones that are written as a phone number.
        return re.match(r"\d{3}\b", candidate) is not None and _NANP.match(candidate) is None
    return before[-1:] == "." and before[-2:-1].isdigit()


def _longest(candidate: str, groups: list[tuple[int, int]], first: int, opinion: int) -> int | None:
    start = groups[first][0]
    for last in range(min(len(groups), first + 8) - 1, first - 1, -1):
        text = candidate[start : groups[last][1]]
        num_digits = sum(map(str.isdigit, text))
        # Nothing that can be dialled goes on with a hyphen.
        is_part = opinion <= 0 and "+" not in text and candidate[groups[last][1] :].startswith("-")
        if 7 <= num_digits <= 17 and not is_part and text.count("(") == text.count(")") and _is_phone(text, opinion):
            return last
    return None


def _is_phone(text: str, opinion: int) -> bool:
    international = text.lstrip("(").startswith("+")
    if _DATE.search(text) and not international and not text.startswith("00"):
        return False
    if international:
        number = _parsed(text, None)
        return number is not None and phonenumbers.is_possible_number(number)
    if opinion >= 0 and _NANP.fullmatch(text):
        return True
    if text.startswith("00") and (opinion >= 0 or not text.isdigit()):
        number = _parsed("+" + text[2:], None)
        return number is not None and phonenumbers.is_valid_number(number)
    if opinion < 0:
        return False
    return _is_national(text, opinion)


def _is_national(text: str, opinion: int) -> bool:
    """A number without a country: real somewhere, and written or announced as a phone number."""
    is_grouped = not text.isdigit()
    if opinion > 0:
        announced = _could_be_from(text, len(REGIONS_IF_ANNOUNCED))
        return any(_is_real(text, region) for region in announced) or (is_grouped and _is_possible(text))
    if not is_grouped or any(one.search(text) for one in _NO_PHONES):
        return False
    # Without a prefix of its country too many other numbers are written so.
    is_dialled = text.startswith(("0", "(0"))
    return is_dialled and any(_is_real(text, region) for region in _could_be_from(text, len(REGIONS)))


def _could_be_from(text: str, num_regions: int) -> list[str]:
    """Return which of the first regions may have a number with these digits. The library is slow, so ask it less."""
    which = _digits_of_regions().Match("".join(filter(str.isdigit, text))) or ()
    return [REGIONS_IF_ANNOUNCED[index] for index in sorted(which) if index < num_regions]


@cache
def _digits_of_regions() -> Any:
    """Return a set that matches digits to REGIONS_IF_ANNOUNCED. It may match too many regions, never too few."""
    found = re2.Set.FullMatchSet(options())
    for region in REGIONS_IF_ANNOUNCED:
        about: Any = PhoneMetadata.metadata_for_region(region)
        prefix, rule = about.national_prefix_for_parsing or "", about.national_prefix_transform_rule or ""
        if rule:
            # The prefix goes on into the number: anything as long as a prefix and a carrier's code.
            prefix = r"\d{1,6}"
        national = f"(?:{about.country_code})?(?:{prefix})?(?:{about.general_desc.national_number_pattern})"
        # A rule may put digits in.
        found.Add(r"\d*" if rule[:1].isdigit() else rf"(?:{about.international_prefix})\d*|{national}")
    found.Compile()
    return found


@lru_cache(maxsize=4096)
def _parsed(text: str, region: str | None) -> PhoneNumber | None:
    try:
        return phonenumbers.parse(text, region)
    except NumberParseException:
        return None


def _is_real(text: str, region: str) -> bool:
    number = _parsed(text, region)
    return number is not None and phonenumbers.is_valid_number(number)


def _is_possible(text: str) -> bool:
    number = _parsed(text, "US")
    return number is not None and phonenumbers.is_possible_number(number)


PHONE = Recogniser(
    "phone",
    Kind.PHONE,
    50,
    r"(?:\+ ?\(?|\(\+?|\b)\d(?:[ .·•\-/()]{0,3}\d){6,34}" + rf"(?:{_EXTENSION_PATTERN}\b|\b(?:{_LETTERS_BEHIND})?)",
    check_phone,
    same=letters_and_digits,
)
