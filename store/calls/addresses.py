"""Rules for the addresses of webhooks and inference servers (against SSRF). This module resolves and connects nothing.

The standard library's ``is_global`` is not sufficient: on Python 3.11 it accepts 192.0.0.192 and some private IPv4
addresses inside IPv6 ones. For IPv6 only the global unicast block is allowed, without its reserved parts. So all other
forms (mapped, compatible, NAT64, unique local, link local) are refused.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

from headrace.store.errors import InvalidRequest, SettingsError
from headrace.store.settings import Settings

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

MAX_URL_CHARS = 2048

DENIED_V4 = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers; 100.100.100.200 is a metadata service
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host agent, a public address that only answers from inside
        "169.254.0.0/16",  # link local, with most clouds' metadata service
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; 192.0.0.192 is a metadata service
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",  # benchmarks between networks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
OPEN_V6 = IPv6Network("2000::/3")
DENIED_V6 = tuple(
    IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",
        "2002::/16",  # 6to4 carries any IPv4 address
        "2620:4f:8000::/48",
        "3fff::/20",  # documentation
    )
)
# Where an inference server may be beside the public addresses: private networks, without the metadata services in them.
_SERVER_NETWORKS: tuple[Network, ...] = (
    *(IPv4Network(block) for block in ("10.0.0.0/8", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")),
    *IPv4Network("100.64.0.0/10").address_exclude(IPv4Network("100.100.100.200/32")),
    IPv6Network("::1/128"),
    *IPv6Network("fc00::/7").address_exclude(IPv6Network("fd00:ec2::254/128")),
)
# ISATAP (RFC 5214) ends in 0000:5efe or 0200:5efe and an IPv4 address, under any prefix.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)

_NUMERIC_LABEL = re.compile(r"(0x[0-9a-f]*|[0-9]+)", re.IGNORECASE)
_HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE)
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+")


@lru_cache(maxsize=8)
def parse_networks(networks: tuple[str, ...]) -> tuple[Network, ...]:
    """Parse CIDRs. Raises SettingsError, which names the malformed one."""
    try:
        return tuple(ip_network(network) for network in networks)
    except ValueError as error:
        raise SettingsError(f"HEADRACE_WEBHOOK_ALLOW_NETWORKS: {error}") from error


def is_public(address: Address) -> bool:
    """True if the address is public on the Internet."""
    if isinstance(address, IPv4Address):
        return not any(address in block for block in DENIED_V4)
    if address not in OPEN_V6 or (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
        return False
    return not any(address in block for block in DENIED_V6)


def is_allowed(text: str, exempt: Sequence[Network] = ()) -> bool:
    """True if the address, in the resolver's text form, is public or in one of the exempt networks."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return False
    return is_public(address) or any(address in network for network in exempt)


def check_url(
    url: str, settings: Settings, *, param: str = "webhook.url", code: str = "webhook_url_not_allowed"
) -> None:
    """Raise InvalidRequest if this URL can be refused without resolving its name.

    At each call ``store.calls.ssrf_guard`` resolves the name and checks every address again.
    """
    try:
        split_url(url, allow_http=settings.webhook_allow_http, exempt=parse_networks(settings.webhook_allow_networks))
    except ValueError as error:
        raise InvalidRequest(f"`{param}`: {error}", code=code, param=param) from error


def check_server_url(url: str, *, param: str = "url") -> None:
    """Raise InvalidRequest if no inference server can be at this address, such as a cloud's metadata service.

    Private addresses are allowed. A name is not resolved: see ``is_server_address``.
    """
    try:
        split_url(url, allow_http=True, exempt=_SERVER_NETWORKS)
    except ValueError as error:
        raise InvalidRequest(f"the engine's url: {error}", param=param) from error


def is_server_address(text: str) -> bool:
    """True if an inference server can be at this address of a name, in the resolver's text form.

    That is also one with a scope, which systemd's resolver gives for the own host's name.
    """
    return "%" in text or is_allowed(text, _SERVER_NETWORKS)


def split_url(url: str, *, allow_http: bool, exempt: Sequence[Network]) -> SplitResult:
    """Return the URL's parts. Raises ValueError, with a readable reason, if the URL is not allowed."""
    if len(url) > MAX_URL_CHARS:
        raise ValueError(f"longer than {MAX_URL_CHARS} characters")
    if not _VISIBLE_ASCII.fullmatch(url) or "\\" in url:
        raise ValueError("has spaces, control characters, backslashes or letters outside ASCII; encode them")
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and allow_http):
        raise ValueError("must begin with https://")
    if "@" in parts.netloc:
        raise ValueError("must not carry a user name or password")
    if parts.fragment:
        raise ValueError("must not have a fragment")
    if parts.port == 0:
        raise ValueError("port 0 cannot be called")
    _check_host(parts.hostname or "", exempt, is_bracketed="[" in parts.netloc)
    return parts


def _check_host(host: str, exempt: Sequence[Network], *, is_bracketed: bool) -> None:
    if is_bracketed or _is_dotted_quad(host):
        if not is_allowed(host, exempt):
            raise ValueError("the address is not public")
        return
    if len(host) > 253 or not _HOST_NAME.fullmatch(host):
        raise ValueError("has no valid host name")
    labels = host.rstrip(".").lower().split(".")
    if _NUMERIC_LABEL.fullmatch(labels[-1]):
        # Resolvers accept 2130706433, 0x7f.1 and 0177.0.0.1 as addresses.
        raise ValueError("write an address as four decimal numbers")
    if labels[-1] == "localhost" and not is_allowed("127.0.0.1", exempt):
        raise ValueError("the address is not public")


def _is_dotted_quad(host: str) -> bool:
    try:
        IPv4Address(host)
    except ValueError:
        return False
    return True
