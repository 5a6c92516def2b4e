"""Numbers with right check digits, of accounts and of people, for the texts of ``lines``."""

from random import Random

from tests.policy.line_forms import ALNUM, DIGITS, UPPER


def some(r: Random, letters: str, n: int) -> str:
    return "".join(r.choice(letters) for _ in range(n))


def groups(value: str, sep: str, size: int = 4) -> str:
    return sep.join(value[i : i + size] for i in range(0, len(value), size))


def luhn(body: str) -> str:
    total = 0
    for i, c in enumerate(reversed(body)):
        n = int(c) * (2 if i % 2 == 0 else 1)
        total += n - 9 if n > 9 else n
    return body + str(-total % 10)


IBAN_FORMS = {
    "DE": "n18",
    "FR": "n10c11n2",
    "GB": "a4n14",
    "ES": "n20",
    "IT": "a1n10c12",
    "NL": "a4n10",
    "BE": "n12",
    "CH": "n5c12",
    "AT": "n16",
    "PL": "n24",
    "SE": "n20",
    "NO": "n11",
    "DK": "n14",
    "FI": "n14",
    "PT": "n21",
    "IE": "a4n14",
    "CZ": "n20",
    "SK": "n20",
    "HU": "n24",
    "RO": "a4c16",
    "GR": "n7c16",
    "TR": "n6c16",
    "SA": "n2c18",
    "AE": "n19",
    "LU": "n3c13",
    "MT": "a4n5c18",
    "BG": "a4n6c8",
    "HR": "n17",
    "SI": "n15",
    "EE": "n16",
    "LV": "a4c13",
    "LT": "n16",
    "IL": "n19",
    "UA": "n6c19",
    "CY": "n8c16",
    "LI": "n5c12",
    "MC": "n10c11n2",
    "IS": "n22",
    "RS": "n18",
    "KZ": "n3c13",
}


def iban(r: Random) -> str:
    country = r.choice(sorted(IBAN_FORMS))
    form, body = IBAN_FORMS[country], ""
    for part in form.replace("n", " n").replace("a", " a").replace("c", " c").split():
        body += some(r, {"n": DIGITS, "a": UPPER, "c": DIGITS + UPPER}[part[0]], int(part[1:]))
    rest = int("".join(str(int(c, 36)) for c in body + country + "00")) % 97
    return f"{country}{98 - rest:02}{body}"


def dni(r: Random) -> str:
    n = r.randrange(10_000_000, 99_999_999)
    return f"{n}{'TRWAGMYFPDXBNJZSQVHLCKE'[n % 23]}"


def nie(r: Random) -> str:
    n = r.randrange(30_000_000)
    return f"{'XYZ'[n // 10_000_000]}{n % 10_000_000:07}{'TRWAGMYFPDXBNJZSQVHLCKE'[n % 23]}"


def weighted(body: str, weights: tuple[int, ...]) -> int:
    return sum(int(c) * w for c, w in zip(body, weights, strict=True))


def pesel(r: Random) -> str:
    body = f"{r.randrange(40, 99)}{r.randrange(1, 13):02}{r.randrange(1, 29):02}{some(r, DIGITS, 4)}"
    return body + str(-weighted(body, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) % 10)


def bsn(r: Random) -> str:
    while True:
        body = some(r, "123456789", 8)
        check = weighted(body, (9, 8, 7, 6, 5, 4, 3, 2)) % 11
        if check < 10:
            return body + str(check)


def cpf(r: Random) -> str:
    body = some(r, DIGITS, 9)
    for size in (10, 11):
        check = weighted(body, tuple(range(size, 1, -1))) * 10 % 11
        body += str(check % 10)
    return f"{body[:3]}.{body[3:6]}.{body[6:9]}-{body[9:]}"


def nino(r: Random) -> str:
    value = r.choice("ABCEGHJKLMPRSTWXYZ") + r.choice("ABCEHJKLMPRSTWXYZ") + some(r, DIGITS, 6) + r.choice("ABCD")
    return r.choice((value, groups(value, " ", 2)))


def nir(r: Random) -> str:
    birth = f"{r.randrange(40, 99)}{r.randrange(1, 13):02}{r.randrange(1, 95):02}"
    body = f"{r.choice((1, 2))}{birth}{r.randrange(1, 900):03}{r.randrange(1, 999):03}"
    key = f"{97 - int(body) % 97:02}"
    return r.choice((body + key, f"{body[0]} {body[1:3]} {body[3:5]} {body[5:7]} {body[7:10]} {body[10:]} {key}"))


def sin(r: Random) -> str:
    return groups(luhn(r.choice("124567") + some(r, DIGITS, 7)), " ", 3)


def hetu(r: Random) -> str:
    date, n = f"{r.randrange(1, 29):02}{r.randrange(1, 13):02}{r.randrange(40, 99)}", r.randrange(2, 900)
    return f"{date}-{n:03}{'0123456789ABCDEFHJKLMNPRSTUVWXY'[int(f'{date}{n:03}') % 31]}"


def personnummer(r: Random) -> str:
    value = luhn(f"{r.randrange(40, 99)}{r.randrange(1, 13):02}{r.randrange(1, 29):02}{some(r, DIGITS, 3)}")
    return f"{value[:6]}-{value[6:]}"


def rijksregister(r: Random) -> str:
    body = f"{r.randrange(40, 99)}{r.randrange(1, 13):02}{r.randrange(1, 29):02}{r.randrange(1, 998):03}"
    check = f"{97 - int(body) % 97:02}"
    return f"{body[:2]}.{body[2:4]}.{body[4:6]}-{body[6:]}.{check}"


def china(r: Random) -> str:
    body = f"110105{r.randrange(1950, 2005)}{r.randrange(1, 13):02}{r.randrange(1, 29):02}{r.randrange(1, 999):03}"
    return body + "10X98765432"[weighted(body, (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)) % 11]


ODD = dict(
    zip(
        ALNUM[:26] + DIGITS,
        (
            1,
            0,
            5,
            7,
            9,
            13,
            15,
            17,
            19,
            21,
            2,
            4,
            18,
            20,
            11,
            3,
            6,
            8,
            12,
            14,
            16,
            10,
            22,
            25,
            24,
            23,
            1,
            0,
            5,
            7,
            9,
            13,
            15,
            17,
            19,
            21,
        ),
        strict=True,
    )
)


def codice(r: Random) -> str:
    body = (
        some(r, "BCDFGLMNPRSTVZ", 6)
        + f"{r.randrange(40, 99)}"
        + r.choice("ABCDEHLMPRST")
        + f"{r.randrange(1, 29):02}"
        + r.choice("ABCDEFGHIL")
        + some(r, DIGITS, 3)
    )
    total = sum(ODD[c] if i % 2 == 0 else (int(c) if c.isdigit() else ord(c) - 65) for i, c in enumerate(body))
    return body + UPPER[total % 26]


def steuer_id(r: Random) -> str:
    digits = list("1234567890")
    r.shuffle(digits)
    drop = r.randrange(9)
    digits[9] = digits[drop]  # one digit stands twice, one is missing
    if digits[0] == "0":
        return steuer_id(r)
    product = 10
    for c in digits:
        total = (int(c) + product) % 10 or 10
        product = total * 2 % 11
    check = (11 - product) % 10
    value = "".join(digits) + str(check)
    return r.choice((value, f"{value[:2]} {value[2:5]} {value[5:8]} {value[8:]}"))


IDS = (dni, nie, pesel, bsn, cpf, nino, nir, sin, hetu, personnummer, rijksregister, china, codice, steuer_id)
