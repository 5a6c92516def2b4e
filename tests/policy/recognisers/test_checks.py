"""The checks of candidates alone: which part of a candidate is a finding, behind which words. Without a scan."""

from collections.abc import Callable

import pytest
from stdnum import luhn

from headrace.policy.recognisers.contacts import check_email, check_phone
from headrace.policy.recognisers.networks import check_ipv4, check_ipv6
from headrace.policy.recognisers.numbers import check_card, check_iban, check_ssn
from headrace.policy.recognisers.recogniser import Spans, Words, as_written, letters_and_digits


def found(check: Callable[[str, str], Spans], candidate: str, before: str = "") -> list[str]:
    return [candidate[start:end] for start, end in check(candidate, before)]


def card(prefix: str, length: int) -> str:
    digits = prefix.ljust(length - 1, "0")
    return digits + luhn.calc_check_digit(digits)


# The first digits of each network with the lengths of its numbers, as its rules publish them.
LENGTHS = {
    "4": "13 16 19",
    **dict.fromkeys(("51", "55", "2221", "2229", "223", "229", "23", "26", "270", "271", "2720"), "16"),
    **dict.fromkeys(("34", "37"), "15"),
    **dict.fromkeys(("644", "649", "65"), "16 19"),
    **dict.fromkeys(("300", "305", "309", "36", "38", "39"), "14 16"),
    **dict.fromkeys(("3528", "3529", "353", "358"), "16"),
    **dict.fromkeys(("2131", "1800"), "15"),
    **dict.fromkeys(("62", "81", "2200", "2204"), "16 17 18 19"),
    "9792": "16",
    **dict.fromkeys(("500", "509", "56", "58", "600", "6011", "630", "670"), "16 18 19"),
    **dict.fromkeys(("1", "2205", "2220", "2721", "3061", "31", "32", "33", "350", "3527", "359", "7", "80", "90"), ""),
}


@pytest.mark.parametrize("prefix", LENGTHS)
def test_a_card_has_its_issuers_first_digits_and_length(prefix: str) -> None:
    numbers = {length: card(prefix, length) for length in range(11, 21)}
    assert [str(length) for length, number in numbers.items() if found(check_card, number)] == LENGTHS[prefix].split()
    wrong = {length: number[:-1] + str((int(number[-1]) + 1) % 10) for length, number in numbers.items()}
    assert [length for length, number in wrong.items() if found(check_card, number)] == []


@pytest.mark.parametrize(
    ("candidate", "before", "cards"),
    [
        ("4111 1111 1111 1111", "", ["4111 1111 1111 1111"]),
        ("4111-1111-1111-1111", "", ["4111-1111-1111-1111"]),
        ("41111111 11111111", "", ["41111111 11111111"]),
        ("41111111-11111111", "", []),
        ("378282 246310005", "", []),
        ("378282 246310005", "my card ", ["378282 246310005"]),
        ("3782 822463 10005", "", ["3782 822463 10005"]),
        ("4111-1111 1111-1111", "card ", []),
        ("4111 1111 1111 1111 4111 1111 1111 1111", "", ["4111 1111 1111 1111"] * 2),
        ("12 4111 1111 1111 1111", "", ["4111 1111 1111 1111"]),
        ("12.4111111111111111", "", []),
        ("4111111111111111", "isbn ", []),
        ("4111111111111111", "isbn or card ", ["4111111111111111"]),
        ("4111111111111111", "3.", []),
        ("4111111111111111", "id_", []),
        ("4111111111111111", "+", []),
        ("4111111111111111", "paid. ", ["4111111111111111"]),
        # Lengths of other things count only behind a word for cards.
        (card("50", 12), "maestro ", [card("50", 12)]),
        (card("50", 17), "", []),
    ],
)
def test_a_card_has_usual_groups(candidate: str, before: str, cards: list[str]) -> None:
    assert found(check_card, candidate, before) == cards


@pytest.mark.parametrize(
    ("candidate", "before", "is_found"),
    [
        ("374-24-9938", "", True),
        ("374249938", "", False),
        ("374249938", "ssn ", True),
        ("374 24 9938", "social security: ", True),
        ("374 24 9938", "", False),
        ("374-24 9938", "ssn ", False),
        ("000-24-9938", "ssn ", False),
        ("666-24-9938", "ssn ", False),
        ("374-00-9938", "ssn ", False),
        ("374-24-0000", "ssn ", False),
        ("912-24-9938", "", False),
        ("912-24-9938", "ssn ", True),
        ("374-24-9938-1", "ssn ", False),
        ("374-24-9938", "order ", False),
        *(("374-24-9938", sign, False) for sign in ("-", ".", "/", "#")),
        ("374-24-9938", "ssn #", True),
    ],
)
def test_a_social_security_number_could_have_been_issued(candidate: str, before: str, is_found: bool) -> None:
    assert found(check_ssn, candidate, before) == ([candidate] if is_found else [])


def test_an_account_number_ends_where_its_check_digits_are_right() -> None:
    number = "DE89 3704 0044 0532 0130 00"
    assert found(check_iban, f"{number} AB 12") == [number]
    assert found(check_iban, f"IBAN:{number}") == [number]
    assert found(check_iban, f"_{number.lower()}") == [number.lower()]
    assert found(check_iban, number.replace("89", "88", 1)) == []
    assert found(check_iban, f"{number}1") == []
    # Of fifteen signs are the shortest ones.
    assert found(check_iban, "NO9386011117947") == ["NO9386011117947"]


@pytest.mark.parametrize(
    ("candidate", "before", "addresses"),
    [
        ("185.219.1.255", "", ["185.219.1.255"]),
        ("185.219.1.256", "", []),
        ("010.000.000.001", "", ["010.000.000.001"]),
        ("1.2.3.4.5", "", []),
        ("_10.0.0.1", "", []),
        ("_10.0.0.1", "ip", ["10.0.0.1"]),
        ("8.8.4.4", "version ", []),
        ("8.8.4.4", "versions 8.8.4.3 and ", []),
        ("8.8.4.4", "server version ", []),
        ("8.8.4.4", "version of the server ", ["8.8.4.4"]),
        ("10.0.0.1", "the versions of ", ["10.0.0.1"]),
        ("10.0.0.1", "version ", []),
        ("8.8.4.4", "lib>=", []),
        ("10.0.0.1", "lib==", []),
        ("8.8.4.4", "from 8.8.3 to ", []),
        ("8.8.4.4", "v/", []),
        ("8.8.4.4", "tcp/", ["8.8.4.4"]),
        ("8.8.4.4", "a.", []),
        ("8.8.4.4", "x-", []),
        ("8.8.4.4", "ip-", ["8.8.4.4"]),
        ("8.8.4.4", "8.8.4.1-", ["8.8.4.4"]),
        ("8.8.4.4-b", "", []),
        ("8.8.4.4-b", "address ", ["8.8.4.4"]),
        ("8.8.4.4.", "", ["8.8.4.4"]),
    ],
)
def test_four_numbers_are_an_address_unless_they_are_a_version(
    candidate: str, before: str, addresses: list[str]
) -> None:
    assert found(check_ipv4, candidate, before) == addresses


@pytest.mark.parametrize(
    ("candidate", "before", "addresses"),
    [
        ("::1", "", ["::1"]),
        ("::2", "", []),
        ("a::b", "", []),
        ("a:b:c::", "", []),
        ("1:b:c::", "", ["1:b:c::"]),
        ("fe80::1", "", ["fe80::1"]),
        ("fe::8b", "", []),
        ("a:b:c:d::", "", ["a:b:c:d::"]),
        ("2001:db8::1:", "", ["2001:db8::1"]),
        ("2001:db8::", "", ["2001:db8::"]),
        ("2001:db8::1.", "", ["2001:db8::1"]),
        ("2001:db8::1", "x", []),
        (":2001:db8::1", "IP", ["2001:db8::1"]),
        *(("2001:db8::1", sign, []) for sign in (":", ".", "_", "-", "7")),
        ("2001:db8::1", "host-", ["2001:db8::1"]),
        ("12:30", "", []),
        ("2001:db8:::1", "", []),
        ("::ffff:10.0.0.1", "", ["::ffff:10.0.0.1"]),
    ],
)
def test_an_address_of_version_six_has_enough_of_one(candidate: str, before: str, addresses: list[str]) -> None:
    assert found(check_ipv6, candidate, before) == addresses


@pytest.mark.parametrize(
    ("before", "opinion"),
    [("", 0), ("no", 0), ("card ", 1), ("isbn ", -1), ("card isbn ", -1), ("isbn card ", 1), ("Kreditkarte", 1)],
)
def test_the_nearest_word_decides(before: str, opinion: int) -> None:
    words = Words("card karte", "isbn")
    assert words.judge(before) == (0 if before == "Kreditkarte" else opinion)
    assert Words("kreditkarte").judge(before) == (before == "Kreditkarte")


def test_a_word_in_favour_is_stronger_at_the_same_place_and_may_end_a_name() -> None:
    assert Words("phone\\sno", "no").judge("phone no") == 1
    assert (Words("cpf").judge("my_cpf"), Words("cpf", in_names=True).judge("my_cpf")) == (0, 1)
    assert (letters_and_digits("a-1 é."), as_written("a-1 ")) == ("A1É", "a-1 ")


TABLE = "id,user,password\n1,ann,"


@pytest.mark.parametrize(
    ("candidate", "before", "address"),
    [
        ("ann@example.com", "", "ann@example.com"),
        ("=ann@example.com", "", "ann@example.com"),
        ("a='ann@example.com", "", "ann@example.com"),
        ("x/ann@example.com", "", "ann@example.com"),
        ("ann@example.comPhone", "", "ann@example.com"),
        ("ann@example.com.", "", "ann@example.com"),
        ("ann@example.com:x", "", "ann@example.com"),
        ("ann%40example.com", "", "ann%40example.com"),
        ("git@example.com:x", "", None),
        ("git@example.com", "", "git@example.com"),
        ("ann@example.png", "", None),
        ("ann@example", "", None),
        ("ann..b@example.com", "", None),
        ("ann.@example.com", "", None),
        ("ann@-example.com", "", None),
        (f"ann@{'x' * 63}.com", "", f"ann@{'x' * 63}.com"),
        (f"ann@{'x' * 64}.com", "", None),
        ("ann@example.c", "", None),
        ("ann@example.com", "@", None),
        ("pw@example.com", "x://user:", None),
        ("ann@example.com", "http://", None),
    ],
)
def test_an_address_has_a_local_part_and_a_domain(candidate: str, before: str, address: str | None) -> None:
    assert found(check_email, candidate, before) == ([] if address is None else [address])


@pytest.mark.parametrize(
    ("candidate", "before", "is_found"),
    [
        ("+14155552671", "", True),
        ("+1 415 555 2671 ext 12", "", True),
        ("0049 30 901820", "", True),
        ("415-555-2671", "", True),
        ("(415) 555-2671", "", True),
        ("030 901820", "", True),
        ("0176 1234567", "tel ", True),
        ("4155552671", "phone ", True),
        ("4155552671", "", False),
        ("415-555-2671", "order ", False),
        ("+14155552671", "order ", True),
        *(("415-555-2671", before, False) for before in ("/", "#", "_", "@", "$ ", "€", "-", "=", "1.")),
        ("+14155552671", "/", True),
        ("415-555-2671", "tel=", True),
        ("415-555-2671", "wa.me/", True),
        ("415 555", "1,", False),
        ("2026-11-28", "", False),
        ("12.345.678", "", False),
        ("00000000", "tel ", False),
        ("1234567", "order ", False),
    ],
)
def test_a_phone_number_is_written_or_announced_as_one(candidate: str, before: str, is_found: bool) -> None:
    assert found(check_phone, candidate, before) == ([candidate] if is_found else [])
