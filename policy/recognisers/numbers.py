"""Payment cards, bank accounts and US social security numbers."""

import re

from stdnum import iban, luhn

from headrace.policy.recognisers.recogniser import Kind, Recogniser, Spans, Words, letters_and_digits

_GROUP = re.compile(r"\d+")
_USUAL_GROUPS = {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (4, 4, 4, 1), (4, 4, 4, 4, 2), (4, 5, 6)}
# Issuers' first digits with the lengths of their numbers: ISO/IEC 7812, as the networks publish them.
_ISSUERS = (
    (re.compile(r"4"), (13, 16, 19)),
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"6011|64[4-9]|65"), (16, 19)),
    (re.compile(r"30[0-5]|309|36|38|39"), (14, 16)),
    (re.compile(r"35(?:2[89]|[3-8])"), (16,)),
    (re.compile(r"2131|1800"), (15,)),
    (re.compile(r"62|81"), (16, 17, 18, 19)),
    (re.compile(r"220[0-4]"), (16, 17, 18, 19)),
    (re.compile(r"9792"), (16,)),
    (re.compile(r"50[0-9]|5[6-9]|6[0379]"), (16, 18, 19)),
)
# Lengths that articles and parcels have too: only where the words before speak of a card.
_IF_ANNOUNCED = ((re.compile(r"50[0-9]|5[6-9]|6[0379]"), (12, 13, 14, 15, 17)),)
_ABOUT_CARDS = Words(
    "card visa mastercard maestro amex diners discover jcb pan\\b cc\\b credit debit karte kreditkarte kk\\b carte"
    " tarjeta cartão carta kort kaart карт 卡 カード 카드",
    r"imei isbn ean gtin upc sku serial iccid sim id\snumber id\sno\b identity nik ktp",
)


def check_card(candidate: str, before: str) -> Spans:
    """Parts that have an issuer's first digits, its length, and a right check digit."""
    opinion = _ABOUT_CARDS.judge(before)
    is_part = before.rstrip(" (").endswith(("_", "+")) or (before[-1:] == "." and before[-2:-1].isdigit())
    if is_part or opinion < 0:
        return
    groups = [found.span() for found in _GROUP.finditer(candidate)]
    first = 0
    while first < len(groups):
        last = _card_from(candidate, groups, first, is_announced=opinion > 0)
        if last is None:
            first += 1
        else:
            yield groups[first][0], groups[last][1]
            first = last + 1


def _card_from(candidate: str, groups: list[tuple[int, int]], first: int, *, is_announced: bool) -> int | None:
    if first and candidate[groups[first][0] - 1] in "._":
        return None
    sizes = [end - start for start, end in groups[first : first + 19]]
    digits = "".join(candidate[start:end] for start, end in groups[first : first + 19])
    num_digits = sum(sizes)
    # From the longest, and most often none begins as a card does.
    for num_groups in range(len(sizes), 0, -1):
        if 12 <= num_digits <= 19 and _is_issued(digits[:num_digits], is_announced):
            last = first + num_groups - 1
            text = candidate[groups[first][0] : groups[last][1]]
            is_all = first == 0 and last == len(groups) - 1
            is_usual = _is_usual(tuple(sizes[:num_groups]), text) or (is_all and is_announced)
            if is_usual and _is_grouped_evenly(text) and luhn.is_valid(digits[:num_digits]):
                return last
        num_digits -= sizes[num_groups - 1]
    return None


def _is_usual(sizes: tuple[int, ...], text: str) -> bool:
    """One number, the groups that are printed on cards, single digits, or fours some of which stuck together."""
    if len(sizes) == 1 or sizes in _USUAL_GROUPS or set(sizes) == {1}:
        return True
    return " " in text and all(size % 4 == 0 for size in sizes)


def _by_length(issuers: tuple[tuple[re.Pattern[str], tuple[int, ...]], ...]) -> dict[int, re.Pattern[str]]:
    return {
        length: re.compile("|".join(start.pattern for start, lengths in issuers if length in lengths))
        for length in {length for _, lengths in issuers for length in lengths}
    }


_STARTS = _by_length(_ISSUERS)
_STARTS_IF_ANNOUNCED = _by_length(_ISSUERS + _IF_ANNOUNCED)


def _is_issued(digits: str, is_announced: bool) -> bool:
    start = (_STARTS_IF_ANNOUNCED if is_announced else _STARTS).get(len(digits))
    return start is not None and start.match(digits) is not None


def _is_grouped_evenly(text: str) -> bool:
    """The same sign between all groups: 1.2-3 4 is no card."""
    return len(set(re.findall(r"\D+", text))) <= 1


CARD = Recogniser(
    "card",
    Kind.CARD,
    75,
    # %B is what stands before it on a magnetic stripe.
    r"(?:\b|%[bB])\d(?:(?: ?[\-._/] ?| {0,2})\d){11,63}\b",
    check_card,
    same=letters_and_digits,
)


def _is_iban(number: str) -> bool:
    # Without the checks of single countries, which know the banks of some of them only.
    return iban.is_valid(number, check_country=False)


def check_iban(candidate: str, _before: str) -> Spans:
    """The longest beginning that is an account number of its country, with the right check digits."""
    start = len(candidate) - len(re.sub(r"(?i)^(?:iban|_)[\s:]?", "", candidate, count=1))
    for place, end in _iban_at(candidate[start:]):
        yield place + start, end + start


def _iban_at(candidate: str) -> Spans:
    ends = [place for place in range(15, len(candidate) + 1) if not candidate[place : place + 1].isalnum()]
    for end in reversed(ends):
        text = candidate[:end]
        if text[-1].isalnum() and 15 <= len(letters_and_digits(text)) <= 34 and _is_iban(letters_and_digits(text)):
            yield 0, end
            return


IBAN = Recogniser(
    "iban",
    Kind.IBAN,
    85,
    r"(?:\b|_|\b(?i:iban))[A-Za-z]{2}[ \-.]{0,2}\d{2}(?:[ \-.\n]{0,2}[A-Za-z0-9]){11,30}\b",
    check_iban,
    same=letters_and_digits,
)

_ABOUT_SSN = Words(
    r"\w{0,24}ssn social[\s_-]?sec social\s(?:is|no|num|#|id) social[:=] soc\.?\ssec s\.s\.n ss(?:#|\s#|\sno|\snum|:)"
    r" taxpayer tax\sid tin\b seguro\ssocial",
    r"range order invoice parts?\b part\s(?:no|num|#) serial sku ref\b reference tracking phone",
)


def check_ssn(candidate: str, before: str) -> Spans:
    """Yield a number that could have been issued. Without hyphens, only after words that announce it."""
    digits = letters_and_digits(candidate)
    if len(digits) != 9 or digits[:3] in {"000", "666"} or digits[3:5] == "00" or digits[5:] == "0000":
        return
    opinion = _ABOUT_SSN.judge(before)
    if opinion < 0 or (before[-1:] in {"-", ".", "/", "#"} and opinion == 0):
        return
    # 123-45 6789 is none.
    if len(set(re.findall(r"\D", candidate))) > 1:
        return
    is_hyphenated = re.fullmatch(r"\d{3}-\d{2}-\d{4}", candidate) is not None
    # A first digit of nine is a taxpayer number, for people without a social security number.
    if opinion > 0 or (is_hyphenated and digits[0] != "9"):
        yield 0, len(candidate)


US_SSN = Recogniser(
    "us_ssn",
    Kind.US_SSN,
    65,
    r"\b\d{3}[ \-.]?\d{2}[ \-.]?\d{4}\b(?:-\d)?",
    check_ssn,
    same=letters_and_digits,
)
