"""Check digits of national numbers: which other digit in each place would be right too, by the weight of the place."""

import pytest

from headrace.policy.recognisers.catalogue import RECOGNISERS
from tests.policy.recognisers.test_checks import found

BY_NAME = {one.name.removeprefix("national_id."): one for one in RECOGNISERS}


@pytest.mark.parametrize(
    ("name", "before", "number", "nums_right"),
    [
        # Modulo 10 a weight of 2, 4, 6 or 8 lets two digits pass, one of 5 lets five pass.
        ("tw_id", "", "A123456789", [2, 1, 2, 5, 2, 1, 2, 1, 1]),
        ("tw_id", "", "Z123456780", [2, 1, 2, 5, 2, 1, 2, 1, 1]),
        ("uy_cedula", "cédula ", "1.234.567-2", [2, 1, 2, 1, 2, 1, 2, 1]),
        ("au_medicare", "medicare ", "2123 45670 1", [1, 1, 1, 1, 1, 1, 1, 1, 1, 10]),
        ("hu_taj", "TAJ ", "111 111 110", [1] * 9),
        ("sg_nric", "", "T3992056A", [1] * 7),
        ("hk_id", "HKID ", "T176691(5)", [1] * 7),
        ("hk_id", "HKID ", "AB987654(3)", [1] * 7),
        # The remainders 0 and 100 are both written as 00.
        ("ru_snils", "СНИЛС ", "087-654-302 00", [*[1] * 8, 2, 1, 1]),
        ("ae_emirates", "", "784-1990-1234567-6", [1] * 15),
    ],
)
def test_each_digit_counts_by_the_weight_of_its_place(
    name: str, before: str, number: str, nums_right: list[int]
) -> None:
    check = BY_NAME[name].check
    assert found(check, number, before) == [number]
    places = [place for place, sign in enumerate(number) if sign.isdigit()]
    right = [
        sum(bool(found(check, f"{number[:place]}{digit}{number[place + 1 :]}", before)) for digit in range(10))
        for place in places
    ]
    assert right == nums_right


def test_the_letter_at_the_end_is_that_of_the_first_letter() -> None:
    check = BY_NAME["sg_nric"].check
    letters = [chr(code) for code in range(ord("A"), ord("Z") + 1)]
    right = {first: [last for last in letters if found(check, f"{first}1234567{last}")] for first in "STFG"}
    assert right == {"S": ["D"], "T": ["J"], "F": ["N"], "G": ["X"]}


def test_prefixes_that_are_not_given_out_are_no_number() -> None:
    check = BY_NAME["gb_nino"].check
    prefixes = ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ", "WE", "BB")
    assert [one for one in prefixes if found(check, f"{one}034688D", "NINO ")] == ["WE", "BB"]


@pytest.mark.parametrize(
    ("name", "candidate", "before", "is_found"),
    [
        ("br_cpf", "390.533.447-05", "", True),
        ("br_cpf", "39053344705", "", False),
        ("br_cpf", "39053344705", "cpf ", True),
        ("br_cpf", "39053344705", "customer_cpf: ", True),
        ("br_cpf", "390.533.447-05", "order ", False),
        ("br_cpf", "39053344705", "national id ", True),
        *(("br_cpf", "390.533.447-05", sign, False) for sign in "-./_#+"),
        ("tw_id", "A123456789", "order ", True),
        ("tw_id", "A123456789", "-", True),
        ("pl_dowod", "ABA300000", "", False),
        ("passport", "CFGHJK123", "passport ", True),
        ("passport", "CFGHJKL12", "passport ", False),
    ],
)
def test_a_number_needs_its_evidence(name: str, candidate: str, before: str, is_found: bool) -> None:
    assert found(BY_NAME[name].check, candidate, before) == ([candidate] if is_found else [])
