"""IP addresses, versions 4 and 6."""

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from headrace.policy.recognisers.recogniser import Kind, Recogniser, Spans, Words

_VERSIONS = Words(
    r"ip ipv4 address addr host server client from",
    r"versions? versión versione versão v[\s.]{0,2}$ ver\b release build firmware driver rev\b revision oid"
    r" sections? chapter clauses? articles? paragraphs? §+ annex"
    r" kernel upgrade update updated bump nuget package assembly"
    r" openjdk jdk jre java chrome firefox safari windows ios android",
)
# The same, directly before the number: 192.168.7.1 and 10.0.0.1 are rarely versions.
_VERSION_BEFORE = re.compile(
    r"(?i)(?:\b(?:versions?|versión|versione|versão|ver|v|release|build|firmware|driver|rev|revision|oid|section|chapter|clause"
    r"|article|paragraph|annex|kernel|upgrade|update|bump|nuget|package"
    r"|chrome|chromium|edge?|opera|opr|brave|electron|jdk)(?:[ :=#]| to | from ){0,2}|§ ?)$"
)
_SELDOM_VERSIONS = re.compile(r"(?:10|127|172\.(?:1[6-9]|2\d|3[01])|192\.168)\.|(?:.*\.)?[12]\d\d(?:\.|$)")
# A letter and a slash or dash come before the version of a program; an address and a dash before the end of a range.
_BELONGS_BEFORE = re.compile(r"[._]$|(?:^|[^\d])-$|[A-Za-z]/$")
# Except after a name for an address: ip_10.0.0.1, tcp/10.0.0.1, address=/example.org/10.0.0.1.
_IS_OF_HOST = re.compile(
    r"(?i)(?:ip|ipv[46]|addr|address|host|node|server|src|dst|from|client|peer|tcp|udp)[-_/]$|=/(?:[\w\-]+\.)+[a-z]{2,}/$"
)
# "versions 1.2.3.4 and 1.2.3.5"
_SECOND = re.compile(r"[\d.]+(?:,| and| or| to| through| -) ?$")
_COMPARED = re.compile(r"[\w\]][=~!<>]=$")
# "from 1.2.3 to 1.2.3.4"
_FROM_VERSION = re.compile(r"(?:^|[^\d.])\d+(?:\.\d+){1,2} ?(?:to|and|or|[-=]?>|→|,) ?$")
# "ip 192.0.2.7-blocked"; a version may have such a suffix too.
_JOINED = re.compile(r"(\d{1,3}(?:\.\d{1,3}){3})-[A-Za-z]")
_OF_DIGITS = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")


def _is_version(before: str, text: str) -> bool:
    """Return True if the words directly before mean a version, or a comparison operator of a requirement is there."""
    if _SELDOM_VERSIONS.match(text):
        before_it = before if _COMPARED.search(before) or _FROM_VERSION.search(before) else ""
        return bool(before_it or _VERSION_BEFORE.search(_SECOND.sub("", before)))
    opinion = _VERSIONS.judge(re.split(r"\d", _SECOND.sub("", before[-32:]))[-1])
    return (
        opinion < 0
        or (opinion == 0 and _COMPARED.search(before) is not None)
        or _FROM_VERSION.search(before) is not None
    )


def check_ipv4(candidate: str, before: str) -> Spans:
    """Yield four numbers up to 255 without more parts, if no word before means a version."""
    start = len(candidate) - len(candidate.lstrip("_"))
    before, text = before + candidate[:start], candidate[start:].rstrip(".-")
    if (joined := _JOINED.match(text)) and _VERSIONS.judge(before) > 0:
        text = joined[1]
    if (_BELONGS_BEFORE.search(before) and not _IS_OF_HOST.search(before)) or _is_version(before, text):
        return
    if _OF_DIGITS.fullmatch(text):
        try:
            # Some logs write 010.000.000.001.
            IPv4Address(".".join(group.lstrip("0") or "0" for group in text.split(".")))
        except AddressValueError:
            return
        yield start, start + len(text)


_NAMED = re.compile(r":(?:::)?[0-9A-Fa-f].*")


def check_ipv6(candidate: str, before: str) -> Spans:
    """Yield an address with enough groups or digits: a::b may be anything."""
    # IP:2001:db8::1
    start = 1 if _NAMED.fullmatch(candidate) and before[-1:].isalpha() else 0
    before, text = before + candidate[:start], candidate[start:].rstrip(".")
    if text.endswith(":") and not text.endswith("::"):
        text = text[:-1]
    is_inside = (before[-1:].isascii() and before[-1:].isalnum()) or before[-1:] in {":", ".", "_", "-"}
    if (is_inside and not start and not _IS_OF_HOST.search(before)) or text.count(":") < 2:
        return
    try:
        IPv6Address(text)
    except AddressValueError:
        return
    groups = [group for group in text.split(":") if group]
    has_digit = any(map(str.isdigit, text))
    if (
        text == "::1"
        or len(groups) >= 4
        or (has_digit and (len(groups) == 3 or any(len(group) >= 3 for group in groups)))
    ):
        yield start, start + len(text)


IPV4 = Recogniser(
    "ip_address.v4",
    Kind.IP_ADDRESS,
    70,
    # The whole run, so that a part of a longer number is no address.
    r"(?:\b|_)\d{1,3}(?:\.\d{1,5}){3,8}(?:\.?\w|-[A-Za-z]){0,8}",
    check_ipv4,
)
IPV6 = Recogniser(
    "ip_address.v6",
    Kind.IP_ADDRESS,
    70,
    # With a colon, so that not every word of the letters a to f is a candidate.
    r"[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{1,40}(?:\.\d{1,3}){0,3}(?:\w){0,2}",
    check_ipv6,
)
