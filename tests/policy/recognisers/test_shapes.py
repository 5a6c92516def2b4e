"""What each look says of typical values: random, chosen by a person, mixed, gibberish, plain, a name."""

import pytest

from headrace.policy.recognisers import shapes
from headrace.policy.recognisers.shapes import bits_per_character, has_odd_part, num_sorts

LOOKS = {
    "date": shapes.is_date,
    "name": shapes.is_name,
    "plain": shapes.is_plain,
    "chosen": shapes.looks_chosen,
    "drawn": shapes.looks_drawn,
    "gibberish": shapes.looks_gibberish,
    "mixed": shapes.looks_mixed,
    "random": shapes.looks_random,
    "secret": shapes.looks_secret,
    "odd": has_odd_part,
}


@pytest.mark.parametrize(
    ("value", "looks"),
    [
        ("hello", "plain"),
        ("my-password", "plain"),
        ("changeme", "plain"),
        ("12345", "date plain"),
        ("2026-11-28T12:30:00Z", "date plain chosen secret"),
        ("v1.2.3", "date plain"),
        ("DB_PASSWORD", "name"),
        ("settings.db.password2", "name plain chosen secret"),
        ("config.url", "name plain"),
        ("ann@example.org", "plain"),
        ("src/main/file.py", "plain"),
        ("https://a.example/x", "plain"),
        ("$SECRET", ""),
        ("/etc/passwd", ""),
        ("a,b2,c3", "plain"),
        ("x" * 129 + "1A", "plain"),
        # As people choose them.
        ("maple4264", "plain chosen"),
        ("Maple#4264", "chosen mixed secret"),
        ("Maple#river", "mixed"),
        ("user@host.Com1", "chosen secret"),
        ("Xk29!plo", "chosen mixed secret"),
        ("Xk29!pl", ""),
        ("Winter2024", "plain chosen secret"),
        ("aaaaaaaa1A!", "chosen"),
        ("river.into.maple.stone", "name plain secret"),
        # As programs draw them.
        ("kq7vzx1p", "chosen gibberish"),
        ("9f8e7d6c5b4a", "chosen"),
        ("qwzkvjxhpfbgmntyrdlc", "plain gibberish"),
        ("pT4vZx91LqWk7Ghd2MbR", "chosen drawn gibberish random secret"),
        ("pT4vZx91LqWk7Ghd2Mb", "chosen gibberish secret"),
        # A key in base64 that begins as a path does.
        ("/pT4vZx91LqWk7Ghd2MbRyU8sNc3eJf6aKw5tHv0oXg=", "drawn gibberish random secret"),
        ("A1B2C3D4E5F6G7H8J9K0", "chosen drawn gibberish random secret"),
        ("sk_live_3f7a91c05b2e4d869a1fc04e7b62d815", "chosen drawn random secret"),
        ("3f7a91c05b2e4d869a1fc04e7b62d815", "chosen drawn secret"),
        ("3f7a91c0-5b2e-4d86-9a1f-c04e7b62d815", "chosen secret"),
        ("aGVsbG8gd29ybGQsIHRoaXMgaXMgdGV4dA==", "chosen drawn secret"),
        ("getUserById2FromTable3", "chosen drawn secret"),
        ("Zq9" * 12, "chosen drawn gibberish"),
        ("maple_gyxrut", "plain odd"),
        ("login_qXw7zp", "chosen gibberish secret odd"),
        ("ABCD-EFGH-IJKL-MNOP", ""),
    ],
)
def test_a_value_looks_like(value: str, looks: str) -> None:
    assert sorted(name for name, look in LOOKS.items() if look(value)) == sorted(looks.split())


def test_sorts_of_signs_and_bits_are_counted() -> None:
    assert [num_sorts(value) for value in ("", "a", "aA", "a1-", "aA1!")] == [0, 1, 2, 3, 4]
    assert [bits_per_character(value) for value in ("aaaa", "aabb", "abcd")] == [0, 1, 2]
    assert has_odd_part("maple_gyxrut", 6.0)
    assert not has_odd_part("maple_gyxrut", 12.0)
    assert not has_odd_part("gyxrut")
