"""The table of addresses: what may be called and what may not, in every spelling."""

from ipaddress import ip_address

import pytest

from headrace.store.calls.addresses import check_url, is_allowed, is_public, parse_networks
from headrace.store.errors import InvalidRequest, SettingsError
from headrace.store.settings import Settings
from tests.refusals import Naming

PUBLIC = ["8.8.8.8", "93.184.216.34", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e", "192.0.1.1"]
# The neighbours of the blocks that are refused.
PUBLIC += [
    *("1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0"),
    *("168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0"),
    *("192.0.3.0", "192.31.195.255", "192.31.197.0", "192.52.194.0", "192.88.98.255", "192.88.100.0", "192.167.0.1"),
    *("192.169.0.0", "192.175.49.0", "198.17.255.255", "198.20.0.0", "198.51.99.0", "198.51.101.0", "203.0.112.255"),
    *("203.0.114.0", "223.255.255.255", "2001:200::1", "2001:db7::1", "2001:db9::1", "2003::1", "2620:4f:8001::1"),
    *("3fff:1000::1", "3ffe::1"),
]
PRIVATE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:0:53aa:64c:0:0:80fe:ffff",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:a9fe:a9fe::1",
    "2002:7f00:1::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "2606:4700::5efe:7f00:1",
    "2606:4700::200:5efe:a00:1",
    *("0.255.255.255", "10.255.255.255", "100.127.255.255", "169.254.0.0", "192.31.196.1", "192.52.193.1"),
    *("192.168.255.255", "192.175.48.1", "198.19.255.255", "239.255.255.255", "2001:1ff::1", "2620:4f:8000::1"),
    *("3fff:fff::1", "4000::1", "1fff::1"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_called(address: str) -> None:
    assert is_public(ip_address(address))
    assert is_allowed(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_every_other_address_is_refused(address: str) -> None:
    assert not is_public(ip_address(address))
    assert not is_allowed(address)


@pytest.mark.parametrize("text", ["", "localhost", "fe80::1%eth0", "2606:4700:4700::1111%1", "1.2.3", "0x7f000001"])
def test_what_is_not_a_plain_address_is_refused(text: str) -> None:
    assert not is_allowed(text)


def test_exempt_networks_open_what_they_name_and_no_more() -> None:
    exempt = parse_networks(("127.0.0.0/8", "::1/128"))
    assert is_allowed("127.0.0.1", exempt)
    assert is_allowed("::1", exempt)
    assert not is_allowed("10.0.0.1", exempt)
    assert not is_allowed("::ffff:127.0.0.1", exempt)


@pytest.mark.parametrize("network", ["10.0.0.1/8", "ten/8", "10.0.0.0/33"])
def test_a_malformed_exemption_is_told(network: str) -> None:
    with pytest.raises(SettingsError, match="HEADRACE_WEBHOOK_ALLOW_NETWORKS"):
        parse_networks((network,))


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com:8443/hook?a=b%20c",
        "https://a-b.example_1.co.uk./hook",
        "https://8.8.8.8/hook",
        "https://[2606:4700:4700::1111]:443/hook",
        "https://xn--bcher-kva.example/",
        "https://1password.com/",
    ],
)
def test_a_good_url_passes(url: str) -> None:
    check_url(url, Settings())


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/", "https"),
        ("ftp://example.com/", "https"),
        ("file:///etc/passwd", "https"),
        ("//example.com/", "https"),
        ("example.com", "https"),
        ("https://", "host"),
        ("https:///path", "host"),
        ("https://user@example.com/", "user name"),
        ("https://user:pw@example.com/", "user name"),
        ("https://8.8.8.8@127.0.0.1/", "user name"),
        ("https://example.com/#x", "fragment"),
        ("https://example.com:0/", "port 0"),
        ("https://example.com:99999/", "[Pp]ort"),
        ("https://example.com:abc/", "[Pp]ort"),
        ("https://exam ple.com/", "spaces"),
        ("https://example.com/\r\nHost: inside", "control"),
        ("https://example.com\\@127.0.0.1/", "backslashes"),
        ("https://ex\u00e4mple.com/", "ASCII"),
        ("https://\u2460\u2461\u2466.0.0.1/", "ASCII"),
        ("https://-example.com/", "host name"),
        ("https://example..com/", "host name"),
        ("https://" + "a" * 64 + ".com/", "host name"),
        ("https://%31%32%37.0.0.1/", "host name"),
        ("https://example.com/" + "x" * 2048, "longer"),
        ("https://127.0.0.1/", "not public"),
        ("https://169.254.169.254/latest/meta-data", "not public"),
        ("https://[::1]/", "not public"),
        ("https://[::ffff:169.254.169.254]/", "not public"),
        ("https://[64:ff9b::a9fe:a9fe]/", "not public"),
        ("https://[fe80::1%25eth0]/", "not public"),
        ("https://[::1", "IPv6"),
        ("https://localhost/", "not public"),
        ("https://app.localhost./", "not public"),
        ("https://2130706433/", "decimal"),
        ("https://0x7f000001/", "decimal"),
        ("https://0x7f.1/", "decimal"),
        ("https://0177.0.0.1/", "decimal"),
        ("https://127.1/", "decimal"),
        ("https://127.0.0.1./", "decimal"),
        ("https://0/", "decimal"),
    ],
)
def test_a_bad_url_is_refused_with_a_reason(url: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        check_url(url, Settings())
    assert caught.value.code == "webhook_url_not_allowed"
    assert caught.value.param == "webhook.url"


def test_development_settings_open_http_and_named_networks() -> None:
    settings = Settings(webhook_allow_http=True, webhook_allow_networks=("127.0.0.0/8",))
    check_url("http://127.0.0.1:9000/hook", settings)
    check_url("http://localhost:9000/hook", settings)
    with pytest.raises(InvalidRequest):
        check_url("http://10.0.0.1/hook", settings)


def test_the_parameter_can_be_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_url("http://x/", Settings(), param="url")
    assert caught.value.param == "url"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.com/" + "x" * 2029, "2048"),
        ("https://a b/", "spaces"),
        ("http://example.com/", "https://"),
        ("https://me@example.com/", "password"),
        ("https://example.com/#a", "fragment"),
        ("https://example.com:0/", "port 0 "),
        ("https://" + "a" * 63 + ".b" * 94 + ".bb", "host name"),
        ("https://127.1/", "four decimal"),
        ("https://APP.LocalHost/", "not public"),
    ],
)
def test_a_refusal_names_the_field_and_the_reason(url: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_url(url, Settings(), param="url", code="odd")
    assert (refused.value.message, refused.value.param, refused.value.code) == (Naming("`url`: ", said), "url", "odd")


def test_the_longest_url_and_host_pass() -> None:
    check_url("https://example.com/" + "x" * 2028, Settings())
    check_url("https://" + "a" * 63 + ".b" * 95, Settings())
    check_url("https://8.8.8.8.nip.io/", Settings())
