"""How sure the word before a value and the sign between them must be, for each look of a value."""

import pytest

from headrace.policy.recognisers.announced import Announced, is_believed, is_in_column, is_short_key, is_typed

WORDS = {"key": "token", "password": "password", "short": "db_pass", "loose": "auth"}
LINKS = {
    "set": ": ",
    "said": " is ",
    "spaced": " ",
    "far": " of x: ",
    "told": " of x is ",
    "next": "\n",
    "line": " x y ",
}
EACH = " ".join(LINKS)


@pytest.mark.parametrize(
    ("value", "believed"),
    [
        ("1234", {}),
        ("493817", {"password": "set said told", "short": "set said told"}),
        ("49381712", {"password": "set said spaced far told", "short": "set said spaced far told"}),
        ("maple4", {"password": "set"}),
        ("maple4264", {"password": "set said spaced far told", "short": "set said"}),
        ("Maple#4264", {"key": "set said", "password": EACH, "short": "set said spaced told"}),
        ("Maple#river", {"password": EACH, "short": "said spaced told"}),
        ("kq7vzx1p", {"key": "set said spaced far told", "password": EACH, "short": "set said spaced told"}),
        ("Xk2!p", {"password": "set said spaced told", "short": "set said spaced told"}),
        ("maple_gyxrut", {"password": "set said spaced far", "short": "set"}),
        ("river-into-maple-stone", {"password": "set said"}),
        ("pT4vZx91LqWk7Ghd2MbR", {"key": EACH, "password": EACH, "short": "set said spaced told line", "loose": EACH}),
        (
            "3f7a91c05b2e4d869a1fc04e7b62d815",
            {"key": EACH, "password": EACH, "short": "set said spaced told", "loose": EACH},
        ),
        (
            "3f7a91c0-5b2e-4d86-9a1f-c04e7b62d815",
            {"key": "set said far told next", "password": EACH, "short": "set said spaced told"},
        ),
        ("2026-11-28", {}),
        ("getUserById2", {}),
        ("DB_PASSWORD", {}),
        ("$SECRET9", {}),
        ("your-token-1", {}),
        ("sha256", {}),
        ("next=", {}),
        ("http://a.example/Xk29", {}),
        ("is_valid2", {"password": "set", "short": "set"}),
        ("accessToken", {}),
    ],
)
def test_a_value_is_believed_behind_these_words_and_links(value: str, believed: dict[str, str]) -> None:
    found = {
        sort: " ".join(
            link
            for link, joint in LINKS.items()
            if is_believed(Announced(value, sort, link, f"{word}{joint}{value}", 0))
        )
        for sort, word in WORDS.items()
    }
    assert {sort: links for sort, links in found.items() if links} == believed


@pytest.mark.parametrize(
    ("text", "value", "sort", "is_secret"),
    [
        ("pin: 1234", "1234", "short", True),
        ("pin: 12345678", "12345678", "short", True),
        ("pin: 123456", "123456", "short", False),
        ("passwords: 493817", "493817", "password", False),
        ('password = "hello"', "hello", "password", True),
        ('password = "hello("', "hello(", "password", False),
        ('password: "string"', "string", "password", False),
        ('password: "getUserById2"', "getUserById2", "password", True),
        ("password: river.into.maple.stone", "river.into.maple.stone", "password", True),
        ("password=river.into.maple.stone", "river.into.maple.stone", "password", False),
        ("password: db.token.into.stone", "db.token.into.stone", "password", False),
        ("secret: maple4264", "maple4264", "key", True),
        ("cookie=3f7a91c0-5b2e-4d86-9a1f-c04e7b62d815", "3f7a91c0-5b2e-4d86-9a1f-c04e7b62d815", "loose", True),
        ("key: 3f7a91c05b2e4d869a1fc04e7b62d815", "3f7a91c05b2e4d869a1fc04e7b62d815", "loose", False),
        ("password: b0", "b0", "password", False),
        ("password: arn:aws:iam::1:secret/Xk29plo7", "secret/Xk29plo7", "password", False),
    ],
)
def test_what_stands_around_a_value_counts(text: str, value: str, sort: str, is_secret: bool) -> None:
    assert is_believed(Announced(value, sort, "set", text, 0)) is is_secret


def test_values_of_columns_users_and_short_keys() -> None:
    values = ("gyxrut", "gyxr", "maple", "your-token", "hello world", "$gyxrutqz", "Maple#4264")
    assert [value for value in values if is_in_column(value, "password")] == ["gyxrut", "Maple#4264"]
    assert [value for value in values if is_in_column(value, "key")] == ["Maple#4264"]
    typed = ("maple", "maple4264", "Maple#river", "kq7vzx1p", "src/a.py")
    assert [value for value in typed if is_typed(value)] == ["maple4264", "Maple#river", "kq7vzx1p"]
    keys = ("kq7vZx1pW9m2Lb4d", "kq7vZx1pW9m2Lb4", "kq7vZx1pW9m2Lb==", "kq7vzx1pw9m2lb4d", "getUserById2FromX")
    assert [value for value in keys if is_short_key(value)] == ["kq7vZx1pW9m2Lb4d", "kq7vZx1pW9m2Lb=="]
