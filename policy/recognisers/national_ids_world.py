"""Numbers that the states of the rest of the world give to people: see ``national_ids``."""

from stdnum import luhn

from headrace.policy.recognisers.national_ids import Proof, anything, national_id, of_stdnum
from headrace.policy.recognisers.recogniser import Recogniser, letters_and_digits

_ITSELF, _GROUPED, _ANNOUNCED = Proof.ITSELF, Proof.GROUPED, Proof.ANNOUNCED


_NRIC_WEIGHTS = (2, 7, 6, 5, 4, 3, 2)
_NRIC_LETTERS = {"S": "JZIHGFEDCBA", "T": "GFEDCBAJZIH", "F": "XWUTRQPNMLK", "G": "RQPNMLKXWUT"}


def _nric(text: str) -> bool:
    """A Singapore identity number."""
    total = sum(weight * int(digit) for weight, digit in zip(_NRIC_WEIGHTS, text[1:8], strict=True))
    return _NRIC_LETTERS[text[0]][total % 11] == text[8]


def _hkid(text: str) -> bool:
    """A Hong Kong identity number: letters count from ten, a blank before a single one as 36."""
    number = letters_and_digits(text).rjust(9)
    values = [36 if sign == " " else int(sign, 36) for sign in number]
    return sum(weight * value for weight, value in zip(range(9, 0, -1), values, strict=True)) % 11 == 0


_TAIWANESE = "ABCDEFGHJKLMNPQRSTUVXYWZIO"


def _taiwanese(text: str) -> bool:
    """A Taiwanese identity number: the letter is one of 26 places, from ten on."""
    tens, ones = divmod(_TAIWANESE.index(text[0].upper()) + 10, 10)
    weights = zip((8, 7, 6, 5, 4, 3, 2, 1, 1), map(int, text[1:]), strict=True)
    return (tens + 9 * ones + sum(weight * digit for weight, digit in weights)) % 10 == 0


def _medicare(text: str) -> bool:
    """An Australian health number: the ninth digit is the others' weighted sum."""
    digits = [int(digit) for digit in letters_and_digits(text)]
    return sum(w * d for w, d in zip((1, 3, 7, 9, 1, 3, 7, 9), digits[:8], strict=True)) % 10 == digits[8]


def _uruguayan(text: str) -> bool:
    """A Uruguayan identity number: one check digit, the sum's distance to the next ten."""
    digits = [int(digit) for digit in letters_and_digits(text).rjust(8, "0")]
    return sum(w * d for w, d in zip((2, 9, 8, 7, 6, 3, 4, 1), digits, strict=True)) % 10 == 0


def _luhn(text: str) -> bool:
    return luhn.is_valid(letters_and_digits(text))


_CEDULA = r"cédula cedula c\.i\. ci\b ciudadanía"

WORLD: tuple[Recogniser, ...] = (
    national_id("ae_emirates", r"784-?\d{4}-?\d{7}-?\d", _luhn, _ITSELF, "emirates الهوية"),
    national_id("ar_cuil", r"\d\d[- ]?\d{8}[- ]?\d", of_stdnum("ar", "cuit"), _GROUPED, "cuil cuit"),
    # Of Peru too.
    national_id("ar_dni", r"\d{1,2}\.\d{3}\.\d{3}|\d{7,8}", anything, _ANNOUNCED, "dni d\\.n\\.i documento"),
    national_id("au_medicare", r"[2-6]\d{3}[ -]?\d{5}[ -]?\d", _medicare, _ANNOUNCED, "medicare"),
    national_id("au_tfn", r"\d{3}[ -]?\d{3}[ -]?\d{2,3}", of_stdnum("au", "tfn"), _ANNOUNCED, r"tfn tax\sfile"),
    national_id("br_cpf", r"\d{3}\.?\d{3}\.?\d{3}[- ]?\d\d", of_stdnum("br", "cpf"), _GROUPED, "cpf"),
    national_id(
        "ca_sin",
        r"\d{3}[ -]?\d{3}[ -]?\d{3}",
        of_stdnum("ca", "sin"),
        _ANNOUNCED,
        r"sin\b social\sinsurance nas\b assurance",
    ),
    national_id("cl_rut", r"\d{1,2}\.?\d{3}\.?\d{3}-[\dkK]", of_stdnum("cl", "rut"), _GROUPED, r"rut\b run\b"),
    national_id("cn_ric", r"\d{17}[\dXx]", of_stdnum("cn", "ric"), _ITSELF, "身份证"),
    national_id("co_cedula", r"\d{1,3}(?:\.\d{3}){2,3}|\d{7,10}", anything, _ANNOUNCED, _CEDULA),
    national_id("do_cedula", r"\d{3}-?\d{7}-?\d", of_stdnum("do", "cedula"), _ANNOUNCED, _CEDULA),
    national_id("ec_cedula", r"\d{9}-?\d", of_stdnum("ec", "ci"), _ANNOUNCED, _CEDULA),
    national_id("eg_id", r"[23]\d{13}", anything, _ANNOUNCED, "القومي"),
    national_id("gh_card", r"GHA-\d{9}-\d", anything, _ITSELF, "ghana"),
    national_id("hk_id", r"[A-Z]{1,2}\d{6}(?:\([\dA]\)|[\dA]\b)", _hkid, _GROUPED, "hkid hong 身份證 身份证", ends=""),
    national_id("id_nik", r"\d{16}", of_stdnum("id", "nik"), _ANNOUNCED, r"nik\b ktp"),
    national_id("il_id", r"\d{9}", of_stdnum("il", "idnr"), _ANNOUNCED, r"teudat תעודת ת\.ז ת״ז זהות id\snumber"),
    national_id("in_aadhaar", r"\d{4}[ -]?\d{4}[ -]?\d{4}", of_stdnum("in", "aadhaar"), _ANNOUNCED, "aadha uid आधार"),
    national_id("in_epic", r"[A-Z]{3}\d{7}", of_stdnum("in", "epic"), _ANNOUNCED, "voter epic\\b"),
    national_id("in_pan", r"[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z]", of_stdnum("in", "pan"), _ITSELF, "pan"),
    national_id(
        "jp_my_number",
        r"\d{4}[ -]?\d{4}[ -]?\d{4}",
        of_stdnum("jp", "in_"),
        _ANNOUNCED,
        r"マイナンバー 個人番号 my\s?number",
    ),
    national_id("ke_pin", r"[AP]\d{9}[A-Z]", of_stdnum("ke", "pin"), _ANNOUNCED, "kra pin\\b"),
    national_id(
        "kr_rrn", r"\d{6}-?\d{7}", of_stdnum("kr", "rrn"), _GROUPED, "rrn 주민등록번호 주민번호 외국인등록번호"
    ),
    national_id("kz_iin", r"\d{12}", anything, _ANNOUNCED, "иин жсн"),
    national_id("lk_nic", r"\d{9}[VvXx]|\d{12}", anything, _ANNOUNCED, "nic\\b"),
    national_id("mx_curp", r"(?i:[a-z]{4}\d{6}[a-z]{6}[0-9a-z]\d)", of_stdnum("mx", "curp"), _ITSELF, "curp"),
    national_id("mx_rfc", r"(?i:[a-zñ&]{4}\d{6}[0-9a-z]{3})", of_stdnum("mx", "rfc"), _ANNOUNCED, r"rfc\b"),
    national_id("my_nric", r"\d{6}-?\d\d-?\d{4}", of_stdnum("my", "nric"), _GROUPED, "mykad nric ic\\b kp\\b"),
    national_id("ng_nin", r"\d{11}", anything, _ANNOUNCED, "nin\\b"),
    national_id("nz_ird", r"\d{2,3}[- ]?\d{3}[- ]?\d{3}", of_stdnum("nz", "ird"), _ANNOUNCED, "ird\\b"),
    national_id("ph_sss", r"\d\d-?\d{7}-?\d", anything, _ANNOUNCED, "sss\\b"),
    national_id("pk_cnic", r"\d{5}-?\d{7}-?\d", of_stdnum("pk", "cnic"), _GROUPED, "cnic nadra شناختی"),
    national_id("sa_id", r"[12]\d{9}", _luhn, _ANNOUNCED, "iqama الهوية إقامة"),
    national_id("sg_nric", r"[STFG]\d{7}[A-Z]", _nric, _ITSELF, "nric fin"),
    national_id("th_pin", r"\d[- ]?\d{4}[- ]?\d{5}[- ]?\d\d[- ]?\d", of_stdnum("th", "pin"), _GROUPED, "เลข thai"),
    national_id("tw_id", r"[A-Z][1289]\d{8}", _taiwanese, _ITSELF, "身分證 統一編號"),
    national_id("us_driver", r"[A-Z]{0,2}\d{5,12}", anything, _ANNOUNCED, r"driver'?s?\slicen[cs]e dl\b dl#"),
    national_id(
        "us_itin", r"9\d\d-\d\d-\d{4}|9\d\d \d\d \d{4}|9\d{8}", of_stdnum("us", "itin"), _GROUPED, "itin taxpayer"
    ),
    national_id(
        "us_mbi",
        r"[1-9][AC-HJKMNP-RT-Y][0-9AC-HJKMNP-RT-Y]\d-?[AC-HJKMNP-RT-Y][0-9AC-HJKMNP-RT-Y]\d-?[AC-HJKMNP-RT-Y]{2}\d\d",
        anything,
        _ITSELF,
        "medicare mbi",
    ),
    national_id("uy_cedula", r"\d\.?\d{3}\.?\d{3}-?\d", _uruguayan, _ANNOUNCED, _CEDULA),
    national_id("ve_cedula", r"[VE]-?\d{1,2}\.?\d{3}\.?\d{3}", anything, _ANNOUNCED, _CEDULA),
    national_id("vn_cccd", r"\d{12}", anything, _ANNOUNCED, r"cccd căn\scước cmnd"),
    national_id("za_id", r"\d{6} ?\d{4} ?\d{3}", of_stdnum("za", "idnr"), _ANNOUNCED, r"id\snumber id\sno sa\sid rsa"),
)
