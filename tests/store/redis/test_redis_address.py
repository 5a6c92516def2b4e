"""Addresses of Redis and of its Sentinels."""

import pytest

from headrace.store.errors import SettingsError
from headrace.store.redis_address import SentinelAddress, is_sentinel, parse_sentinel
from tests.refusals import Naming


def test_an_address_of_sentinels_is_read_with_all_its_parts() -> None:
    url = "rediss+sentinel://me:p%40ss@one:1,two/main%20db/3?sentinel_username=s&sentinel_password=t&ssl_ca_certs=/ca"
    assert parse_sentinel(url) == SentinelAddress(
        (("one", 1), ("two", 26379)),
        "main db",
        3,
        "me",
        "p@ss",
        "s",
        "t",
        is_encrypted=True,
        tls={"ssl_ca_certs": "/ca"},
    )
    plain = parse_sentinel("redis+sentinel://one/main")
    assert plain == SentinelAddress((("one", 26379),), "main")
    assert "p@ss" not in repr(parse_sentinel(url))
    assert [is_sentinel(one) for one in (url, "redis://a", "rediss://a", "unix:///a")] == [True, False, False, False]


FORM = "redis+sentinel://host:26379,host:26379/SERVICE/0"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+sentinel://one", Naming("service", FORM)),
        ("redis+sentinel://one/main/x", Naming("service", FORM)),
        ("redis+sentinel://one,/main", Naming("host", FORM)),
        ("redis+sentinel://one:x/main", Naming("host", FORM)),
        (
            "redis+sentinel://one/main?db=1",
            Naming("option db", "sentinel_password, sentinel_username, ssl_ca_certs", "ssl_keyfile"),
        ),
        ("redis+sentinel://one/main?ssl_keyfile=a", Naming("ssl_keyfile", "rediss+sentinel://")),
    ],
)
def test_an_address_that_names_no_sentinels_is_refused(url: str, said: Naming) -> None:
    with pytest.raises(SettingsError, match="REDIS_URL: ") as refused:
        parse_sentinel(url)
    assert refused.value.message == said


@pytest.mark.parametrize(("url", "scheme"), [("http://a", "http"), ("cache:6379", "")])
def test_an_unknown_scheme_is_refused(url: str, scheme: str) -> None:
    with pytest.raises(SettingsError) as refused:
        is_sentinel(url)
    assert refused.value.message == Naming("REDIS_URL: ", "rediss+sentinel://", f" {scheme}://", "docs/deployment.md")
